"""Which keys of ours another trainer's loop honours.  The others are refused by name: nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinerl.config import Config, describe_keys, value_of
from spinerl.errors import InputError
from spinerl.figures import asked_figures
from spinerl.permission import open_code
from spinerl.rewards import COSTLY, asked_by

__all__ = ["Loop", "check_keys", "refuse"]


@dataclass(frozen=True)
class Loop:
    """Another trainer's loop.

    `top` are the keys outside of any section that it honours, `sections` those of each section ("*" for all of them).
    `reasons` say, by key or by section ("" for none), why another key is not honoured.
    """

    name: str
    top: Sequence[str]
    sections: Mapping[str, Sequence[str]]
    reasons: Mapping[str, str]


def check_keys(config: Config, loop: Loop) -> None:
    """InputError for a function that is misspelt or not permitted, and, naming the key, for what this loop would have
    to ignore.

    A key left at its default is never refused.  The guard is on by default and in no other loop: only a recipe that
    asks for it is refused.
    """
    open_code(config)
    for key, _, default, _ in describe_keys(unlisted=True):
        section, _, name = key.rpartition(".")
        top = section.partition(".")[0]
        honoured = loop.sections.get(top, ()) if section else loop.top
        owner: Any = config
        for part in section.split(".") if section else ():
            owner = getattr(owner, part)
        value = getattr(owner, name)
        if key == "guard.mode":  # its value does not tell whether it was asked for
            refused = value != "off" and name in owner.model_fields_set
        else:
            refused = honoured != "*" and name not in honoured and value != default
        if refused:
            raise refuse(loop, f"{key}={value}", loop.reasons.get(key) or loop.reasons.get(top, "it has no such thing"))
    if config.steps < 1:
        raise InputError(f"steps={config.steps}: nothing to train; `spinerl eval` only evaluates")
    if config.reward == "gold" or asked_by(config.reward).intersection(COSTLY):
        raise refuse(
            loop,
            f"reward={config.reward} (method={config.method})",
            "it is not made of the group's answers, tokens and entropies only",
        )
    for key, own, reason in (
        ("loss.form", config.loss.form == "dpo", "its loss is of single tokens, and of no pairs"),
        ("loss.form", config.loss.form == "calibration", "its batch holds responses, and no checks of them"),
        ("anchor.fisher", config.anchor.fisher > 0, "it has no anchor on weights"),
    ):
        if own:
            raise refuse(loop, f"{key}={value_of(config, key)}", reason)
    if figures := asked_figures(config):
        raise refuse(loop, f"vote.weights={config.vote.weights}", f"it needs {', '.join(figures)} of every token")
    if config.data.order not in ("shuffled", "sequential"):
        raise refuse(loop, f"data.order={config.data.order}", "allowed are shuffled and sequential")
    if config.data.by_agreement:
        raise refuse(
            loop,
            f"data.min_agreement={config.data.min_agreement}, data.max_agreement={config.data.max_agreement}",
            "the questions of all steps are fixed before the first",
        )


def refuse(loop: Loop, setting: str, reason: str) -> InputError:
    """The error that says so."""
    return InputError(f"{setting} cannot be honoured inside {loop.name}: {reason}")
