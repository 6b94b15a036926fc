"""A benchmark's record as one table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from spinerl.bench.machine import one_line

__all__ = ["results_table"]

TableRow = tuple[str, str, str, str]  # what, ours, the other's, ratio


def results_table(result: Mapping[str, Any]) -> Table:
    """What was measured, ours next to the other's; ratios as median [lowest, highest repeat]."""
    table = Table(
        Column("", no_wrap=True), "ours", "other", "ratio", show_edge=False, pad_edge=False, title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for part, rows in _ROWS.items():
        if part in result:
            table.add_section()
            for row in rows(result[part]):
                table.add_row(*row)
    model = result["model"]
    table.caption = (
        f"{one_line(result['machine'])}; {model['num_parameters'] / 1e6:.1f} M parameters, {model['dtype']}; "
        f"{result['seconds']:.0f} s in all"
    )
    table.caption_justify = "left"
    return table


def _step(found: Mapping[str, Any]) -> Iterator[TableRow]:
    rows = f" ({found['trl']['rows_per_device']} rows a pass)" if "trl" in found else ""
    yield (
        f"step / TRL{rows}",
        _seconds(found["seconds"]),
        _seconds(found.get("seconds_trl")),
        _ratio(found, "ratio_vs_trl"),
    )
    yield (
        "step, all tokens / TRL",
        _seconds(found["seconds_all_tokens"]),
        _seconds(found.get("seconds_trl")),
        _ratio(found, "ratio_vs_trl_all_tokens"),
    )
    if "seconds_trl_defaults" in found:
        yield (
            "step / TRL as it comes",
            _seconds(found["seconds"]),
            _seconds(found["seconds_trl_defaults"]),
            f"{found['ratio_vs_trl_defaults']:.2f}",
        )
    for phase, share in found["share"].items():
        yield f"  of it: {phase}", f"{100 * share:.0f} %", "", ""
    yield "  peak memory", _bytes(found["peak_memory_bytes"]), _bytes(found.get("peak_memory_trl_defaults_bytes")), ""


def _rollout(found: Mapping[str, Any]) -> Iterator[TableRow]:
    for name, ending in (("rollout / generate", ""), ("rollout / generate, half", "_half")):
        yield (
            name,
            _rate(found[f"tokens_per_s{ending}"]),
            _rate(found[f"tokens_per_s_generate{ending}"]),
            _ratio(found, f"ratio_vs_generate{ending}"),
        )


def _update(found: Mapping[str, Any]) -> Iterator[TableRow]:
    yield (
        "update / dense, memory",
        _bytes(found["peak_memory_bytes"]),
        _bytes(found["peak_memory_dense_bytes"]),
        _ratio(found, "memory_ratio_vs_dense"),
    )
    yield (
        "update / dense, time",
        _seconds(found["seconds"]),
        _seconds(found["seconds_dense"]),
        _ratio(found, "time_ratio_vs_dense"),
    )
    for fraction, seconds in found["seconds_by_fraction"].items():
        yield f"  top {100 * float(fraction):.0f} % of tokens", _seconds(seconds["seconds"]), "", ""


def _sharing(found: Mapping[str, Any]) -> Iterator[TableRow]:
    for what, prefix in (("sharing / not", ""), ("  rollout", "rollout_"), ("  update", "update_")):
        yield (
            what,
            _seconds(found[f"{prefix}seconds"]),
            _seconds(found[f"{prefix}seconds_off"]),
            _ratio(found, f"{prefix}ratio"),
        )


def _images(found: Mapping[str, Any]) -> Iterator[TableRow]:
    for size, one in found["by_group_size"].items():
        for what, prefix in (
            (f"images / not shared, {size} each", ""),
            ("  rollout", "rollout_"),
            ("  update", "update_"),
        ):
            yield (
                what,
                _seconds(one[f"{prefix}seconds"]),
                _seconds(one[f"{prefix}seconds_off"]),
                _ratio(one, f"{prefix}ratio"),
            )
        yield (
            "  rollout / generate",
            _seconds(one["rollout_seconds"]),
            _seconds(one["generate_seconds"]),
            _ratio(one, "ratio_vs_generate"),
        )


def _efficiency(found: Mapping[str, Any]) -> Iterator[TableRow]:
    peak = f"{found['matmul_gflop_per_s']:.0f} GFLOP/s"
    yield "fastest matmul / torch's", peak, f"{found['torch_mm_gflop_per_s']:.0f} GFLOP/s", ""
    for what, key in (("rollout", "rollout"), ("update", "update"), ("update, all tokens", "update_all_tokens")):
        share = found[f"{key}_fraction_of_peak"]
        yield f"share of peak, {what}", f"{100 * share:.0f} %", peak, ""


def _scaling(found: Mapping[str, Any]) -> Iterator[TableRow]:
    for axis, phases in found["lines"].items():
        fits = ", ".join(f"{phase} {1000 * line['slope']:.3g} ms" for phase, line in phases.items())
        yield f"one more: {axis}", fits, "", ""


_ROWS = {
    "step": _step,
    "rollout": _rollout,
    "update": _update,
    "sharing": _sharing,
    "images": _images,
    "efficiency": _efficiency,
    "scaling": _scaling,
}


def _ratio(found: Mapping[str, Any], key: str) -> str:
    if key not in found:
        return "-"
    repeats = found[f"{key}_repeats"]
    return f"{found[key]:.2f} [{min(repeats):.2f}–{max(repeats):.2f}]"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f} tok/s"


def _bytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.0f} MiB"
