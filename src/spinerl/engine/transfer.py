"""Copies between the machine's memory and a device's, none of which waits for the device without need."""

from __future__ import annotations

import torch

__all__ = ["to_device"]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on the device (itself, where it is there), behind the work that the device has in its queue.

    `tensor.to(device)` would wait until a GPU has done all of that.  The host tensor may be changed afterwards: CUDA
    has read memory that is not pinned when the call returns.  Other devices do not promise that: they are waited for.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
