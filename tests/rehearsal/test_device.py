"""The rehearsed device refuses, allows and waits where a GPU does."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from tests.rehearsal.device import DeviceTensor, rehearsal, watch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def device():
    with rehearsal():
        yield


def made(*shape, dtype=torch.float32):
    return torch.arange(1, 1 + torch.Size(shape).numel()).view(shape).to("cuda", dtype, non_blocking=True)


WAITS = {
    # reading numbers
    "item": (lambda x: x.sum().item(), ["to host"]),
    "bool": (lambda x: bool(x.sum() > 0), ["to host"]),
    "tolist": (lambda x: x.tolist(), ["to host"]),
    "cpu": (lambda x: x.cpu(), ["to host"]),
    "to a host tensor": (lambda x: torch.zeros(4).copy_(x[0]), ["to host"]),
    "equal": (lambda x: torch.equal(x, x + 1), ["to host"]),
    # shapes that depend on numbers
    "nonzero": (lambda x: x.nonzero(), ["size"]),
    "where": (lambda x: torch.where(x > 2), ["size"]),
    "a mask": (lambda x: x[x > 2], ["size"]),
    "a mask of the host": (lambda x: x[torch.ones(3, 4, dtype=torch.bool)], ["to device", "size"]),
    "masked_select": (lambda x: x.masked_select(x > 2), ["size"]),
    "unique": (lambda x: x.unique(), ["size"]),
    "bincount": (lambda x: x[0].long().bincount(), ["size"]),
    "repeat_interleave by a tensor": (lambda x: x[0].repeat_interleave(made(4, dtype=torch.long)), ["size"]),
    # copies to the device
    "tensor": (lambda _: torch.tensor([1, 2], device="cuda"), ["to device"]),
    "to": (lambda _: torch.ones(2).to("cuda"), ["to device"]),
    "an index of the host": (lambda x: x[torch.tensor([1, 2])], ["to device"]),
    # what queues work only
    "non_blocking": (lambda _: torch.ones(2).to("cuda", non_blocking=True), []),
    "nothing": (lambda _: torch.tensor([], device="cuda").to("cpu"), []),
    "made there": (lambda _: torch.arange(3, device="cuda") + torch.zeros(3, device="cuda"), []),
    "arithmetic": (lambda x: ((x * 2).softmax(-1) @ x.t()).sum(), []),
    "an index of the device": (lambda x: x[made(2, dtype=torch.long)], []),
    "a number at a mask": (lambda x: x.__setitem__(x > 2, 0.0), []),
    "repeat_interleave by a number": (lambda x: x.repeat_interleave(2, 0), []),
    "a known size": (lambda x: x[0].repeat_interleave(made(4, dtype=torch.long), output_size=10), []),
    "a number of the host": (lambda x: x * torch.tensor(2.0), []),
    "isin": (lambda x: torch.isin(x.long(), made(2, dtype=torch.long)), []),
    "searchsorted": (lambda x: torch.searchsorted(x, x), []),
    "like": (lambda x: torch.zeros_like(x) + x.new_full((3, 4), 2.0), []),
    "on the host": (lambda _: torch.ones(3).nonzero(), []),
}


@pytest.mark.parametrize("case", WAITS)
def test_waits(case):
    work, expected = WAITS[case]
    x = made(3, 4)
    with watch() as seen:
        work(x)
    assert [wait.kind for wait in seen.all] == expected


REFUSED = {
    "arithmetic": lambda x: x + torch.ones(3, 4),
    "arithmetic of the host": lambda x: torch.ones(3, 4) + x,
    "a number of the device on the host": lambda x: torch.ones(3, 4) * x.sum(),
    "in place on the host": lambda x: torch.tensor(1.0).add_(x.sum()),
    "matmul": lambda x: x @ torch.ones(4, 3),
    "cat": lambda x: torch.cat([x, torch.ones(1, 4)]),
    "cat of a number": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "gather": lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    "index_select": lambda x: x.index_select(0, torch.tensor([0])),
    "embedding": lambda x: torch.nn.functional.embedding(torch.tensor([0]), x),
    "where": lambda x: torch.where(torch.ones(3, 4, dtype=torch.bool), x, 0.0),
    "an index of the device on the host": lambda _: torch.ones(3)[made(2, dtype=torch.long)],
    "values of the host": lambda x: x.index_put_((made(2, dtype=torch.long),), torch.ones(2, 4)),
    "a generator of the host": lambda x: x.uniform_(generator=torch.Generator()),
    "numpy": lambda x: x.numpy(),
    "a copy to the host that does not wait": lambda x: x.to("cpu", non_blocking=True),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    with pytest.raises((RuntimeError, TypeError), match=r"same device|device|cpu|cuda|host"):
        REFUSED[case](made(3, 4))


def test_numbers_gradients_and_views_are_those_of_the_host():
    weight = torch.linspace(-1, 1, 12).view(3, 4)
    grads = []
    for device in ("cpu", "cuda"):
        leaf = weight.clone().to(device).requires_grad_()
        view = leaf[:, 1:]
        (view.softmax(-1).square().sum() + leaf.gather(1, torch.tensor([[0], [1], [2]]).to(device)).sum()).backward()
        grads.append(leaf.grad.cpu())
    assert torch.equal(*grads)
    x = made(3, 4)
    version = x._version
    x[1:, :2] = 0.0
    assert isinstance(x, DeviceTensor)
    assert x._version > version
    assert x.cpu().tolist() == [[1, 2, 3, 4], [0, 0, 7, 8], [0, 0, 11, 12]]
    assert x.is_cuda
    assert x.device == torch.device("cuda", 0)


def test_a_module_moves_learns_and_is_copied():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    module[1].weight.requires_grad_(False)
    module.to("cuda")
    parameters = dict(module.named_parameters())
    assert len(parameters) == 4
    assert all(isinstance(p, DeviceTensor) and isinstance(p, torch.nn.Parameter) for p in parameters.values())
    other = copy.deepcopy(module)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1, fused=True)
    module(made(2, 4)).square().sum().backward()
    optimizer.step()
    moved = {
        name: not torch.equal(p.cpu(), dict(other.named_parameters())[name].cpu()) for name, p in parameters.items()
    }
    assert moved == {"0.weight": True, "0.bias": True, "1.weight": False, "1.bias": True}
    assert [p.requires_grad for p in other.parameters()] == [True, True, False, True]


def test_a_file_of_its_tensors_has_to_be_read_to_the_host():
    file = io.BytesIO()
    torch.save({"x": made(2, 2), "host": torch.ones(1)}, file)
    file.seek(0)
    with pytest.raises(RuntimeError, match="map_location"):
        torch.load(file, weights_only=True)
    file.seek(0)
    assert torch.load(file, map_location="cpu", weights_only=True)["x"].tolist() == [[1, 2], [3, 4]]


def test_afterwards_there_is_no_device():
    def outside():
        return torch.cuda.is_available()

    assert outside()
    with pytest.raises(RuntimeError, match="rehearsed"), rehearsal():
        pass
