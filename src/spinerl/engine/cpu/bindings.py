"""The C library's structs and functions, declared a second time for ctypes and checked against its own figures."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

__all__ = [
    "Constants",
    "DecodeAttentionArgs",
    "DecoderStepArgs",
    "ExtendAttentionArgs",
    "LayerState",
    "LayerWeights",
    "Library",
    "LibraryMismatchError",
    "bind",
]

_ABI_VERSION = 2
_NUM_HEAD_DIMS = 5
_NUM_SAVED = 9


class LibraryMismatchError(Exception):
    """A library that is not the one these declarations are for."""


def _fields(kind: type, *names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names)


class DecodeAttentionArgs(ctypes.Structure):
    """`decode_attention_args` of kernels.h, field by field."""

    _fields_ = (
        *_fields(ctypes.c_long, "num_rows", "num_heads", "num_kv_heads"),
        ("queries", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        *_fields(ctypes.c_long, "block_size", "own_length"),
        *_fields(ctypes.c_void_p, "key_blocks", "value_blocks", "prompt_keys", "prompt_values"),
        *_fields(ctypes.c_long, "padded_length", "max_length"),
        ("prompt_lengths", ctypes.c_void_p),
        ("num_tasks", ctypes.c_long),
        *_fields(ctypes.c_void_p, "task_question", "task_start", "task_count", "order", "out", "lse"),
        ("in_order", ctypes.c_int),
        ("first", ctypes.c_long),
    )


class ExtendAttentionArgs(ctypes.Structure):
    """`extend_attention_args` of kernels.h, field by field."""

    _fields_ = (
        ("row_starts", ctypes.c_void_p),
        *_fields(ctypes.c_long, "max_row_length", "num_heads", "num_kv_heads", "head_dim"),
        *_fields(ctypes.c_void_p, "queries", "keys", "values", "prompt_keys", "prompt_values"),
        *_fields(ctypes.c_long, "question_stride", "head_stride", "token_stride"),
        ("prompt_lengths", ctypes.c_void_p),
        ("max_length", ctypes.c_long),
        ("scale", ctypes.c_float),
        *_fields(ctypes.c_long, "num_tasks", "num_questions"),
        *_fields(ctypes.c_void_p, "task_question", "task_start", "task_count", "out", "lse"),
        *_fields(ctypes.c_void_p, "dout", "dqueries", "dkeys", "dvalues", "dprompt_keys", "dprompt_values"),
        ("partial_sums", ctypes.c_void_p),
    )


class LayerWeights(ctypes.Structure):
    """`layer_weights` of kernels.h: addresses, None for what is missing."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "input_norm", "qkv_proj", "qkv_bias", "q_norm", "k_norm", "o_proj", "o_bias"),
        *_fields(ctypes.c_void_p, "post_attention_norm", "gate_up_proj", "gate_up_bias", "down_proj", "down_bias"),
    )


class LayerState(ctypes.Structure):
    """`layer_state` of kernels.h, field by field; `saved`: addresses for the activations of q_proj, k_proj, v_proj,
    o_proj, gate_proj, up_proj, down_proj, of attention, and its lse."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "prompt_keys", "prompt_values", "key_blocks", "value_blocks"),
        ("saved", ctypes.c_void_p * _NUM_SAVED),
    )


class DecoderStepArgs(ctypes.Structure):
    """`decoder_step_args` of kernels.h, field by field."""

    _fields_ = (
        *_fields(ctypes.c_long, "num_layers", "hidden_size", "intermediate_size"),
        *_fields(ctypes.c_float, "eps", "head_norm_eps"),
        *_fields(ctypes.c_void_p, "weights", "states", "cos", "sin", "hidden_states"),
        ("slot", ctypes.c_long),
        ("final_eps", ctypes.c_float),
        *_fields(ctypes.c_void_p, "final_norm", "lm_head"),
        ("vocab_size", ctypes.c_long),
        ("logits", ctypes.c_void_p),
        ("bf16", ctypes.c_long),
    )


class _LibraryInfo(ctypes.Structure):
    """`library_info_t` of kernels.h, field by field."""

    _fields_ = (
        *_fields(ctypes.c_long, "info_size", "abi_version", "decode_attention_size", "extend_attention_size"),
        *_fields(ctypes.c_long, "layer_weights_size", "layer_state_size", "decoder_step_size"),
        *_fields(ctypes.c_long, "lanes", "panel", "tile", "num_parts", "rows_per_task", "num_saved"),
        ("has_wide_registers", ctypes.c_long),
        ("head_dims", ctypes.c_long * _NUM_HEAD_DIMS),
    )


@dataclass(frozen=True)
class Constants:
    """What kernels.h and gemm.h define, for this processor."""

    lanes: int
    panel: int
    tile: int
    num_parts: int
    rows_per_task: int
    has_wide_registers: bool
    head_dims: tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """A loaded library: its functions, declared, its constants, and the SHA-256 of its file where that is known."""

    functions: ctypes.CDLL
    constants: Constants
    checksum: str = ""


_N, _F, _P, _I = ctypes.c_long, ctypes.c_float, ctypes.c_void_p, ctypes.c_int
_SIGNATURES: dict[str, tuple[type, ...]] = {  # without the number of threads, which comes first everywhere
    "rms_norm_forward": (_N, _N, _P, _P, _P, _P, _F, _P, _P),
    "rms_norm_backward": (_N, _N, *(_P,) * 9),
    "add_indexed": (_N, _N, *(_P,) * 5),
    "swiglu_forward": (_N, _P, _P, _P),
    "swiglu_backward": (_N, *(_P,) * 5),
    "swiglu_recompute_backward": (_N, _N, *(_P,) * 7),
    "rope": (_N, _N, _N, _P, _P, _P, _I, _P),
    "norm_rope_forward": (_N, _N, _N, _P, _P, _P, _F, _P, _P, _P),
    "norm_rope_backward": (_N, _N, _N, _P, _P, _P, _F, *(_P,) * 5),
    "pack_panels": (_N, _N, _P, _P),
    "grad_weight": (_N, _N, _N, _P, _P, _P),
    "grad_input": (_N, _N, _N, _P, _P, _P, _I),
    "bf16_available": (),
    "bf16_pack": (_N, _N, _P, _I, _P),
    "bf16_matmul": (_N, _N, _N, _P, _P, _P, _I),
    "bf16_grad_weight": (_N, _N, _N, _P, _P, _P),
    "sample": (_N, _N, _N, _P, _F, *(_P,) * 4),
    "decode_attention": (ctypes.POINTER(DecodeAttentionArgs), _N),
    "extend_attention_forward": (ctypes.POINTER(ExtendAttentionArgs),),
    "extend_attention_backward": (ctypes.POINTER(ExtendAttentionArgs),),
    "decoder_step": (ctypes.POINTER(DecoderStepArgs), ctypes.POINTER(DecodeAttentionArgs), _N),
}


def bind(functions: ctypes.CDLL) -> Library:
    """Declare a loaded library's functions and read its constants.

    Raises LibraryMismatchError where a function is missing, or a struct has another size than its declaration here.
    """
    try:
        functions.library_info.argtypes = ()
        functions.library_info.restype = ctypes.POINTER(_LibraryInfo)
        for name, arguments in _SIGNATURES.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = (_I, *arguments), _I
    except AttributeError as error:
        raise LibraryMismatchError(f"a function is missing: {error}") from None
    info = functions.library_info().contents
    _check("library_info_t", info.info_size, ctypes.sizeof(_LibraryInfo))  # the first field, before any other is read
    for name, struct in (
        ("decode_attention", DecodeAttentionArgs),
        ("extend_attention", ExtendAttentionArgs),
        ("layer_weights", LayerWeights),
        ("layer_state", LayerState),
        ("decoder_step", DecoderStepArgs),
    ):
        _check(name, getattr(info, f"{name}_size"), ctypes.sizeof(struct))
    _check("abi_version", info.abi_version, _ABI_VERSION, what="is")
    constants = Constants(
        lanes=info.lanes,
        panel=info.panel,
        tile=info.tile,
        num_parts=info.num_parts,
        rows_per_task=info.rows_per_task,
        has_wide_registers=bool(info.has_wide_registers),
        head_dims=tuple(info.head_dims),
    )
    return Library(functions, constants)


def _check(name: str, found: int, expected: int, what: str = "has size") -> None:
    if found != expected:
        raise LibraryMismatchError(f"{name} {what} {found} in C and {expected} in Python")


def _try_out(file: str) -> None:
    """Load a library and call it once, in a process that may die of it; a mistake ends it with a reason."""
    try:
        functions = bind(ctypes.CDLL(file)).functions
    except (OSError, LibraryMismatchError) as error:
        sys.exit(str(error))
    ones, found = (ctypes.c_float * 64)(*[1.0] * 64), (ctypes.c_float * 64)()
    functions.rms_norm_forward(1, 1, 64, ones, None, None, ones, 0.0, found, None)
    if list(found) != list(ones):
        sys.exit("its RMSNorm of ones is not one")


if __name__ == "__main__":
    _try_out(sys.argv[1])
