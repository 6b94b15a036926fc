"""A device that reports itself as `cuda:0` and computes on the CPU: what only runs on a GPU is rehearsed without one.

Inside `rehearsal()` tensors that are made on, or moved to, "cuda" are `DeviceTensor`s.  They refuse what a GPU would
refuse (host tensors as operands, generators of the host, `numpy()`), and `watch()` lists every operation for which the
host would wait for the device, with the functions of spinerl that asked for it.

torch's own table of operators says which results depend on data (`torch.Tag`); which copies wait is what
`cudaMemcpyAsync` does with memory that is not pinned, as torch calls it: every copy to the host waits, a copy to the
device waits unless it is `non_blocking`.  docs/gpu.md says what this cannot show.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # reads the functions of torch.cuda by name, which must be before they are exchanged
import torch._lazy.ts_backend
from torch.overrides import TorchFunctionMode

__all__ = ["DeviceTensor", "Wait", "Waits", "rehearsal", "watch"]

DEVICE = torch.device("cuda", 0)  # what the tensors say
HELD = torch.device("lazy", 0)  # what torch's C++ takes them for
MEMORY = 8 * 2**30  # bytes that the device says it has, all of them free

aten = torch.ops.aten

# torch's C++ takes the tensors for those of its "lazy" device, of which it wants to know nothing but that it exists; its
# backward passes run in the calling thread.  For CUDA it would look for streams, which a build without CUDA does not have.
torch._lazy.ts_backend.init()

_SPINERL = f"{os.sep}spinerl{os.sep}"


@dataclass(frozen=True)
class Wait:
    """The host waits for the device.

    `kind`: "to host", "to device", or "size" where the shape of a result depends on data.  `stack`: the functions of
    spinerl that led there, innermost first, as `module.function`; () in a backward pass.
    """

    kind: str
    op: str
    stack: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} by {self.op} in {self.stack[0] if self.stack else 'a backward pass'}"


@dataclass
class Waits:
    """What `watch` saw, in order."""

    all: list[Wait] = field(default_factory=list)

    def under(self, function: str) -> list[Wait]:
        """Those while this function ran."""
        return [wait for wait in self.all if function in wait.stack]

    def by_function(self, under: str = "") -> Counter[tuple[str, str]]:
        """How many there were by (kind, innermost function), under a function or at all."""
        chosen = self.under(under) if under else self.all
        return Counter((wait.kind, wait.stack[0] if wait.stack else "") for wait in chosen)


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `inner` is a host tensor that holds its numbers."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        assert not isinstance(inner, DeviceTensor)
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=HELD,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _dispatch(func, args, dict(kwargs or {}))

    device = property(lambda _: DEVICE)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda _: True)  # pyright: ignore[reportAssignmentType]
    is_cpu = property(lambda _: False)  # pyright: ignore[reportAssignmentType]

    def get_device(self) -> int:
        return 0

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    # With these torch.nn.Module.to exchanges a parameter as a whole.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(inner["inner"])

    @property
    def data(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, DeviceTensor):
            raise RuntimeError("a host tensor cannot be the data of one on the device")
        torch.Tensor.data.__set__(self, value)  # pyright: ignore[reportAttributeAccessIssue]
        self.inner = value.inner

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                copied = self.clone()
            copied.requires_grad_(self.requires_grad)
            copied.__dict__.update({k: v for k, v in self.__dict__.items() if k != "inner"})
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        _note("to host", "pickle")
        _saved.add(self.inner.untyped_storage()._cdata)
        return self.inner.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        _note("to host", "repr")
        return f"{self.inner!r} on {DEVICE}"


# ---- operators ----

_INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
# Beside pointwise operators, those whose CUDA kernels take a number that lies on the host as a tensor without dimensions.
_TAKE_NUMBERS = {"masked_fill", "masked_fill_", "fill_", "fill", "index_fill", "index_fill_", "where", "lerp", "lerp_"}
_RESHAPE_IN_PLACE = {
    "resize_", "resize_as_", "set_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapdims_", "as_strided_",
}  # fmt: skip


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _is_composite(func):  # in inference mode they come here as they are
        found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    name = func.overloadpacket.__name__
    if name in ("copy_", "_to_copy", "_local_scalar_dense"):
        return _copy(name, func, args, kwargs)
    if name in _RESHAPE_IN_PLACE:
        raise NotImplementedError(f"the rehearsal has no {name}: it changes a tensor's shape in place")
    generator = kwargs.get("generator")
    if generator is not None:
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")
    tensors = list(_tensors((args, kwargs)))
    if name in _INDEXED:
        _check_index(name, args)
    elif any(not isinstance(tensor, DeviceTensor) for tensor in tensors):
        _check_host_operands(func, name, tensors, args, kwargs)
    if name not in _INDEXED and kwargs.get("output_size") is None and _data_decides(func):
        _note("size" if torch.Tag.dynamic_output_shape in func.tags else "to host", name)
    to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    return _wrapped(func, func(*_inner(args), **_inner(kwargs)), args, kwargs, to_host)


def _copy(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "_local_scalar_dense":
        _note("to host", name)
        return func(*_inner(args))
    if name == "copy_":
        target, source = args[0], args[1]
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        _note_copy(isinstance(source, DeviceTensor), isinstance(target, DeviceTensor), waits, name)
        _innermost(target).copy_(_innermost(source))
        return target
    device = kwargs.pop("device", None)
    to_device = device is None or torch.device(device) == HELD
    waits = not kwargs.pop("non_blocking", False)
    kwargs.pop("pin_memory", None)
    _note_copy(True, to_device, waits, name)
    found = func(_innermost(args[0]), **kwargs)
    return DeviceTensor(found) if to_device else found


def _note_copy(from_device: bool, to_device: bool, waits: bool, op: str) -> None:
    if from_device and not to_device:
        if not waits:
            raise RuntimeError("a copy to the host that does not wait holds no numbers yet: synchronize, or let it wait")
        _note("to host", op)
    if to_device and not from_device and waits:
        _note("to device", op)


def _check_index(name: str, args: tuple[Any, ...]) -> None:
    """Indices may lie on the host: the device gets a copy.  The tensor itself and new values may not be elsewhere."""
    tensor, indices = args[0], [index for index in args[1] if index is not None]
    if not isinstance(tensor, DeviceTensor) and any(isinstance(index, DeviceTensor) for index in indices):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    for index in indices:
        if isinstance(tensor, DeviceTensor) and not isinstance(index, DeviceTensor):
            _note("to device", f"{name} with an index of the host")
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    if len(args) > 2:
        value, number = args[2], args[2].dim() == 0
        accumulates = len(args) > 3 and args[3]
        if len(indices) == len(masks) == 1 and value.numel() == 1 and not accumulates and isinstance(tensor, DeviceTensor):
            if isinstance(value, DeviceTensor):
                _note("to host", name)
            return  # torch fills by the mask, without asking where it is true
        if isinstance(value, DeviceTensor) != isinstance(tensor, DeviceTensor):
            if not number:
                raise _mixed(name)
            _note("to host" if isinstance(value, DeviceTensor) else "to device", name)
    if isinstance(tensor, DeviceTensor) and masks:
        _note("size", f"{name} with a mask")


def _check_host_operands(
    func: Any, name: str, tensors: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Host tensors are refused, but for single numbers where the device's kernels take them as such."""
    host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    takes_numbers = torch.Tag.pointwise in func.tags or name in _TAKE_NUMBERS or name.startswith("_foreach_")
    changed = [_argument(func, args, kwargs, i) for i in _changed(func) if i is not None]
    if not takes_numbers or any(tensor.dim() for tensor in host) or any(one is t for one in changed for t in host):
        raise _mixed(name)


def _mixed(name: str) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({name})"
    )


@cache
def _is_composite(func: Any) -> bool:
    """Whether this is made of other operators, on any device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _data_decides(func: Any) -> bool:
    """Whether the shape or value that this gives to the host depends on the numbers in a tensor."""
    return torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags


@cache
def _changed(func: Any) -> tuple[int | None, ...]:
    """For each of its results, the number of the argument that it changes and returns; None for a new tensor."""
    written = {
        name: i
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for name in argument.alias_info.before_set
    }
    return tuple(
        next((written[name] for name in result.alias_info.before_set if name in written), None)
        if result.alias_info is not None and result.alias_info.is_write
        else None
        for result in func._schema.returns
    )


def _argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> Any:
    return args[number] if number < len(args) else kwargs.get(func._schema.arguments[number].name)


def _wrapped(func: Any, found: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to_host: bool) -> Any:
    """The results as tensors of the device; what an operator changed in place is the tensor it was given."""
    changed = _changed(func)
    if not changed:
        return None
    several = len(changed) > 1
    results = []
    for result, number in zip(found if several else (found,), changed, strict=True):
        if number is not None:
            given = _argument(func, args, kwargs, number)
            assert isinstance(given, list | tuple) or given.shape == given.inner.shape, f"{func} changed a shape in place"
            results.append(given)
        else:
            results.append(result if to_host else _outer(result))
    return tuple(results) if several else results[0]


def _outer(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return DeviceTensor(value)
    return type(value)(map(_outer, value)) if isinstance(value, list | tuple) else value


def _inner(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.inner
    if isinstance(value, dict):
        return {name: _inner(one) for name, one in value.items()}
    return type(value)(map(_inner, value)) if type(value) in (list, tuple) else value


def _innermost(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.inner if isinstance(tensor, DeviceTensor) else tensor


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


# ---- the device ----

# Those that make tensors out of none.  The others are made of these by torch.
_FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m",
    "randperm", "tril_indices", "triu_indices",
)  # fmt: skip
_MAKE_OF_DATA = {torch.tensor, torch.as_tensor, torch.asarray}  # they skip what a tensor's class has to say
_watching: list[Waits] = []
_saved: set[int] = set()  # storages that were pickled as the device's


@contextmanager
def rehearsal() -> Iterator[None]:
    """Inside, torch has a CUDA device, one that `DeviceTensor` makes up.  It may not be entered twice at a time."""
    if torch.cuda.is_available():
        raise RuntimeError("there is a CUDA device here: nothing needs to be rehearsed")
    library = torch.library.Library("aten", "IMPL", "Lazy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch's own functions of the lazy device are replaced
            for name in _FACTORIES:
                packet, _, overload = name.partition(".")
                library.impl(name, _factory(getattr(getattr(aten, packet), overload or "default")))
            library.impl("_to_copy", _moved)
        torch.serialization.register_package(0, _location_of, _restored)
        with mock.patch.multiple(torch.cuda, **_cuda_functions()), _Names():
            yield
    finally:
        torch.serialization._package_registry[:] = [
            entry for entry in torch.serialization._package_registry if entry[1] is not _location_of
        ]
        library._destroy()


@contextmanager
def watch() -> Iterator[Waits]:
    """Every wait for the device meanwhile."""
    seen = Waits()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def _note(kind: str, op: str) -> None:
    if not _watching:
        return
    stack, frame = [], sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if _SPINERL in file and f"{os.sep}tests{os.sep}" not in file:
            module = file.rpartition(_SPINERL)[2].removesuffix(".py").replace(os.sep, ".")
            stack.append(f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    for seen in _watching:
        seen.all.append(Wait(kind, op, tuple(stack)))


class _Names(TorchFunctionMode):
    """Whoever asks for "cuda" is given the device that it stands for."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func in _MAKE_OF_DATA and _held(kwargs.get("device")) is HELD:
            return func(*args, **kwargs | {"device": "cpu"}).to(HELD)
        if func is torch.Tensor.cuda:
            return args[0].to(HELD)
        if func is torch.Tensor.__setitem__ and isinstance(args[1], torch.Tensor) and isinstance(args[2], bool | int | float):
            args = (*args[:2], torch.tensor(args[2]))  # for a GPU, a number at a mask or an index stays on the host
        if kwargs.get("device") is not None:
            kwargs["device"] = _held(kwargs["device"])
        return func(*map(_held, args), **kwargs)


def _held(value: Any) -> Any:
    """`HELD` for what names the device."""
    if isinstance(value, str) and value.startswith("cuda"):
        return HELD
    return HELD if isinstance(value, torch.device) and value.type == "cuda" else value


def _factory(func: Any) -> Any:
    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> torch.Tensor:
        del device, pin_memory
        return DeviceTensor(func(*args, **kwargs, device=torch.device("cpu")))

    return make


def _moved(tensor: torch.Tensor, *, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> torch.Tensor:
    """A host tensor, as there is no other here, on the device."""
    assert device == HELD
    kwargs.pop("pin_memory", None)
    _note_copy(False, True, not non_blocking, "_to_copy")
    return DeviceTensor(aten._to_copy.default(tensor, **kwargs))


def _location_of(storage: Any) -> str | None:
    return str(DEVICE) if storage._cdata in _saved else None


def _restored(_storage: Any, location: str) -> None:
    """As where a file of a GPU's tensors is read on a machine with another one, or none."""
    if location.startswith("cuda"):
        raise RuntimeError("Attempting to deserialize object on a CUDA device: read it with map_location='cpu'")


def _cuda_functions() -> dict[str, Any]:
    properties = SimpleNamespace(name="rehearsal", total_memory=MEMORY, major=9, minor=0, multi_processor_count=1)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def zero(*_: Any, **__: Any) -> int:
        return 0

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": zero,
        "set_device": nothing,
        "_lazy_init": nothing,
        "synchronize": nothing,
        "empty_cache": nothing,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "memory_reserved": zero,
        "memory_allocated": zero,
        "max_memory_allocated": zero,
        "reset_peak_memory_stats": nothing,
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
    }
