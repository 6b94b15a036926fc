"""`torch.autograd.Function` without types: its methods are declared for any arguments, ours are for their own."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Function"]

Function: Any = torch.autograd.Function
