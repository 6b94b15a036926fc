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
from typing import Any, NamedTuple
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

_SPINERL, _TESTS = (f"{os.sep}{name}{os.sep}" for name in ("spinerl", "tests"))


@dataclass(frozen=True)
class Wait:
    """The host waits for the device.

    `kind`: "to host", "to device", or "size" where the shape of a result depends on data.  `stack`: the functions of
    spinerl, and of the tests, that led there, innermost first, as `module.function`.
    """

    kind: str
    op: str
    stack: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} by {self.op} in {self.stack[0] if self.stack else 'something else'}"


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
# Besides pointwise operators, those whose CUDA kernels take a host tensor without dimensions for a number.
_TAKE_NUMBERS = {"masked_fill", "masked_fill_", "fill_", "fill", "index_fill", "index_fill_", "where", "lerp", "lerp_"}
_RESHAPE_IN_PLACE = {
    "resize_", "resize_as_", "set_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapdims_", "as_strided_",
}  # fmt: skip


class _Op(NamedTuple):
    """What there is to know of an operator."""

    name: str
    composite: bool  # made of other operators, on any device
    waits: str  # "size" or "to host" where the shape or number that it gives depends on data; ""
    takes_numbers: bool  # its CUDA kernels take a host tensor without dimensions for a number
    changed: tuple[int | None, ...]  # for each result the number of the argument that it changes and returns; None: new


@cache
def _op(func: Any) -> _Op:
    name = func.overloadpacket.__name__
    written = {
        alias: i
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for alias in argument.alias_info.before_set
    }
    changed = tuple(
        next((written[alias] for alias in result.alias_info.before_set if alias in written), None)
        if result.alias_info is not None and result.alias_info.is_write
        else None
        for result in func._schema.returns
    )
    by_data = name not in _INDEXED and torch.Tag.data_dependent_output in func.tags
    by_size = name not in _INDEXED and torch.Tag.dynamic_output_shape in func.tags
    return _Op(
        name,
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"),
        "size" if by_size else "to host" if by_data else "",
        torch.Tag.pointwise in func.tags or name in _TAKE_NUMBERS or name.startswith("_foreach_"),
        changed,
    )


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    op = _op(func)
    if op.composite:  # in inference mode they come here as they are
        found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    if op.name in ("copy_", "_to_copy", "_local_scalar_dense"):
        return _copy(op.name, func, args, kwargs)
    if op.name in _RESHAPE_IN_PLACE:
        raise NotImplementedError(f"the rehearsal has no {op.name}: it changes a tensor's shape in place")
    host: list[torch.Tensor] = []
    inner = [_inner(value, host) for value in args]
    to_host = False
    named = {}
    if kwargs:
        generator, device = kwargs.get("generator"), kwargs.get("device")
        if generator is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")
        named = {name: _inner(value, host) for name, value in kwargs.items() if name != "pin_memory"}
        if device is not None:
            to_host, named["device"] = torch.device(device).type == "cpu", torch.device("cpu")
    if op.name in _INDEXED:
        _check_index(op.name, args)
    elif host:
        _check_host_operands(func, op, host, args, kwargs)
    if op.waits and kwargs.get("output_size") is None:
        _note(op.waits, op.name)
    return _wrapped(func, op, func(*inner, **named), args, kwargs, to_host)


def _copy(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "_local_scalar_dense":
        _note("to host", name)
        return func(_innermost(args[0]))
    if name == "copy_":
        target, source = args[0], args[1]
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        from_device, to_device = isinstance(source, DeviceTensor), isinstance(target, DeviceTensor)
        _note_copy(from_device, to_device, non_blocking, source.numel(), name)
        _innermost(target).copy_(_innermost(source))
        return target
    device = kwargs.pop("device", None)
    to_device = device is None or torch.device(device) == HELD
    non_blocking = kwargs.pop("non_blocking", False)
    kwargs.pop("pin_memory", None)
    _note_copy(True, to_device, non_blocking, args[0].numel(), name)
    found = func(_innermost(args[0]), **kwargs)
    return DeviceTensor(found) if to_device else found


def _note_copy(from_device: bool, to_device: bool, non_blocking: bool, size: int, op: str) -> None:
    if size == 0:
        return
    if from_device and not to_device:
        if non_blocking:
            raise RuntimeError(
                "a copy to the host that does not wait holds no numbers yet: synchronize, or let it wait"
            )
        _note("to host", op)
    if to_device and not from_device and not non_blocking:
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
        if (
            len(indices) == len(masks) == 1
            and value.numel() == 1
            and not accumulates
            and isinstance(tensor, DeviceTensor)
        ):
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
    func: Any, op: _Op, host: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Host tensors are refused, but for single numbers where the device's kernels take them as such."""
    changed = [_argument(func, args, kwargs, i) for i in op.changed if i is not None]
    if not op.takes_numbers or any(t.dim() for t in host) or any(one is t for one in changed for t in host):
        raise _mixed(op.name)


def _mixed(name: str) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({name})"
    )


def _argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> Any:
    return args[number] if number < len(args) else kwargs.get(func._schema.arguments[number].name)


def _wrapped(func: Any, op: _Op, found: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to_host: bool) -> Any:
    """The results as tensors of the device; what an operator changed in place is the tensor it was given."""
    if not op.changed:
        return None
    several = len(op.changed) > 1
    results = []
    for result, number in zip(found if several else (found,), op.changed, strict=True):
        if number is not None:
            given = _argument(func, args, kwargs, number)
            assert isinstance(given, list | tuple) or given.shape == given.inner.shape, (
                f"{func} changed a shape in place"
            )
            results.append(given)
        else:
            results.append(result if to_host else _outer(result))
    return tuple(results) if several else results[0]


def _outer(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return DeviceTensor(value)
    return type(value)(map(_outer, value)) if isinstance(value, list | tuple) else value


def _inner(value: Any, host: list[torch.Tensor]) -> Any:
    """A value with host tensors in place of the device's; those that were of the host already join `host`."""
    if type(value) is DeviceTensor:
        return value.inner
    if isinstance(value, torch.Tensor):
        host.append(value)
    return type(value)([_inner(one, host) for one in value]) if type(value) in (list, tuple) else value


def _innermost(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.inner if isinstance(tensor, DeviceTensor) else tensor


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
    _begin_lazy()
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
        if file != __file__ and (_SPINERL in file or _TESTS in file):
            module = (
                file.rpartition(_SPINERL if _SPINERL in file else _TESTS)[2].removesuffix(".py").replace(os.sep, ".")
            )
            stack.append(f"{module}.{frame.f_code.co_qualname.partition('.<locals>')[0]}")
        frame = frame.f_back
    for seen in _watching:
        seen.all.append(Wait(kind, op, tuple(stack)))


@cache
def _begin_lazy() -> None:
    """Let torch's lazy device exist.  torch's C++ takes the tensors for that one's, and wants to know no more of it.

    Its backward passes run in the calling thread.  For CUDA torch would look for streams, which are not there.
    """
    torch._lazy.ts_backend.init()


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
        if (
            func is torch.Tensor.__setitem__
            and isinstance(args[1], torch.Tensor)
            and isinstance(args[2], bool | int | float)
        ):
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
    _note_copy(False, True, non_blocking, tensor.numel(), "_to_copy")
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
