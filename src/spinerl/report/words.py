"""What the runs did, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spinerl.report.groups import (
    Group,
    Triple,
    accuracy,
    data_of,
    eval_row,
    first_and_last,
    last_part,
    method_of,
    verdict_of,
)
from spinerl.report.read import RunData, number
from spinerl.report.text import NBSP, show_duration, show_percent

__all__ = ["headline", "level_of", "progress", "show_interval", "summary", "title"]

_STREAM_WORDS = (("before adapting", "before"), ("by the vote", "vote"), ("after adapting", "after"))


def title(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    methods = list(dict.fromkeys(method_of(run).upper() for run in runs))
    data = list(dict.fromkeys(data_of(run) for run in runs))
    names = methods[0] if len(methods) == 1 else f"{', '.join(methods[:-1])} and {methods[-1]}"
    return f"{names} on {data[0]}" if len(data) == 1 else f"{names} on {len(data)} data sets"


def headline(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Model, data, seed, steps, time: a value that all runs share, or the count of different ones."""
    runs = [run for group in groups for run in group.runs]

    def shared(values: Iterable[str], plural: str) -> str:
        different = list(dict.fromkeys(values))
        return different[0] if len(different) == 1 else f"{len(different)} {plural}"

    def steps(run: RunData) -> str:
        return f"{run.steps_done}" if run.finished else f"{run.steps_done} of {run.planned_steps}"

    times = [run.step_seconds for run in runs if run.step_seconds is not None]
    facts = [
        ("Method", shared((method_of(run) for run in runs), "methods")),
        ("Model", shared((last_part(str(run.setting("model.name", "unknown"))) for run in runs), "models")),
        ("Data", shared((data_of(run) for run in runs), "data sets")),
        (
            "Seed" if len(runs) == 1 else "Seeds",
            ", ".join(dict.fromkeys(str(run.setting("seed", "?")) for run in runs)),
        ),
        ("Steps", shared((steps(run) for run in runs), "different counts")),
        ("Time in steps", show_duration(sum(times)) if times else "not recorded"),
    ]
    return [("Runs", str(len(runs))), *facts] if len(runs) > 1 else facts


def progress(run: RunData) -> list[str]:
    if run.finished:
        return []
    stands_in = " The last evaluation written stands in for the result." if eval_row(run, -1) else ""
    return [f"This run is unfinished: {run.steps_done} of {run.planned_steps} steps so far.{stands_in}"]


def summary(group: Group) -> list[str]:
    """A paragraph's sentences: accuracy, then the dynamics, then a warning where they call for one."""
    sentences = [_accuracy_sentence(group.runs[0]) if len(group.runs) == 1 else _seeds_sentence(group)]
    text = group.runs[0].guard.get("text")
    if len(group.runs) == 1 and isinstance(text, str) and text:
        sentences.append(f"{text[0].upper()}{text[1:]}")
    sentences += [_saturation_sentence(run) for run in group.runs[:1] if len(group.runs) == 1]
    sentences += [_stream_sentence(run) for run in group.runs[:1] if len(group.runs) == 1 and run.stream]
    sentences += [_dynamics_sentence(group), _collapse_sentence(group)]
    return [sentence for sentence in sentences if sentence]


def _accuracy_sentence(run: RunData) -> str:
    if not run.evals:
        return "No evaluation was written yet, so nothing is known about accuracy."
    key = "eval/pass@1"
    after_row = eval_row(run, -1) or run.evals[-1]
    if run.guard.get("kept_step") == 0 and (start := accuracy(eval_row(run, 0), "eval/pass@1")) is not None:
        return f"The unadapted model was kept; its greedy Pass@1 is {show_percent(start[0])}."
    before, after = (accuracy(eval_row(run, index), key) for index in (0, -1))
    if before is None and after is None:
        return (
            "Accuracy is unknown: the data has no gold answers. What follows shows how far responses agree "
            "with each other, not whether they are right."
        )
    if before is None or after is None:
        known = before or after
        assert known is not None
        who = "of the unadapted model" if after is None else f"at step {after_row['step']}"
        level = f" ({level_of(run)} interval {show_interval(known)})" if show_interval(known) else ""
        missing = "no later evaluation was written" if after is None else "the unadapted model was not evaluated"
        return f"Greedy Pass@1 {who} is {show_percent(known[0])}{level}; {missing}."
    verdict = verdict_of(before, after)
    change = f"from {show_percent(before[0])} to {show_percent(after[0])}"
    both = f"{level_of(run)} intervals {show_interval(before)} and {show_interval(after)}"
    if verdict == "unknown":
        return f"Greedy Pass@1 went {change}; without intervals, this may be noise."
    if verdict == "unclear":
        return f"Greedy Pass@1 went {change}, but this run cannot tell whether accuracy changed: the {both} overlap."
    return f"Greedy Pass@1 {verdict} {change} ({both})."


def _saturation_sentence(run: RunData) -> str:
    """When the reward had risen as far as it would; "" where that is not known."""
    step = number(run.manifest.get("saturation_step"))
    if step is None:
        return ""
    return f"The mean reward first came within 1{NBSP}% of its highest at step {step:.0f} of {run.steps_done}."


def _stream_sentence(run: RunData) -> str:
    """What a stream's answers before and after adapting were worth, from the figures in the manifest."""
    figures = run.stream

    def share(name: str) -> str:
        value, low, high = (number(figures.get(key)) for key in (name, f"{name}_low", f"{name}_high"))
        return "" if value is None else f"{show_percent(value)} ({show_interval((value, low, high))})"

    said = [f"{words} {found}" for words, name in _STREAM_WORDS if (found := share(name))]
    num = int(number(figures.get("num_questions")) or 0)
    if not said:
        return f"{num} questions came once, as a stream."
    sentence = f"Of {num} questions that came once, as a stream, right were {', '.join(said)}"
    change, low, high = (number(figures.get(key)) for key in ("change", "change_low", "change_high"))
    if change is not None and low is not None and high is not None:
        edges = f"{level_of(run)} interval {100 * low:+.1f} to {100 * high:+.1f}"
        sentence += f"; question by question adapting changed {100 * change:+.1f} points ({edges})"
    return f"{sentence}."


def _seeds_sentence(group: Group) -> str:
    before, after = (group.eval_mean(index, "eval/pass@1") for index in (0, -1))
    if before is None or after is None:
        known = any(key.startswith("eval/pass@1") for run in group.runs for row in run.evals for key in row)
        return (
            f"The {len(group.runs)} seeds were not evaluated both before and after."
            if known
            else "Accuracy is unknown: no evaluation against gold answers was written."
        )
    verdicts = [
        verdict_of(*pair)
        for run in group.runs
        if (pair := (accuracy(eval_row(run, 0), "eval/pass@1"), accuracy(eval_row(run, -1), "eval/pass@1")))
    ]
    words = {"rose": "rose", "fell": "fell", "unclear": "too close to tell", "unknown": "without intervals"}
    counts = ", ".join(f"{verdicts.count(v)} {words[v]}" for v in words if v in verdicts)
    return (
        f"The mean greedy Pass@1 of {len(group.runs)} seeds went from {show_percent(before[0])} "
        f"to {show_percent(after[0])} (the seeds end at {show_interval(after)}; seed by seed: {counts})."
    )


def _dynamics_sentence(group: Group) -> str:
    parts = []
    for key, words, show in (
        ("label/majority_frac", "the majority fraction", lambda *ab: " to ".join(map(show_percent, ab))),
        ("rollout/response_length", "the response length", lambda a, b: f"{a:.0f} to {b:.0f} tokens"),
        ("rollout/entropy", "the mean token entropy", lambda a, b: f"{a:.2f} to {b:.2f} nats"),
    ):
        ends = first_and_last(group, key)
        if ends is not None:
            parts.append(f"{words} {'' if parts else 'went '}from {show(*ends)}")
    if not parts:
        return ""
    steps = max(1, len(group.line("label/majority_frac", "").points or group.line("rollout/entropy", "").points) // 10)
    window = f"averages of the first and the last {steps} steps" if steps > 1 else "first and last step"
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{text[0].upper()}{text[1:]} ({window})."


def _collapse_sentence(group: Group) -> str:
    """The signs of a collapse, if at least two of the three show."""
    signs = []
    reward, length = first_and_last(group, "reward/mean"), first_and_last(group, "rollout/response_length")
    if reward is not None and reward[1] >= 0.95:
        signs.append("the majority-vote reward is saturated")
    if length is not None and length[1] < 0.6 * length[0]:
        signs.append("responses lost over 40 % of their length")
    if len(group.runs) == 1:
        pair = (
            accuracy(eval_row(group.runs[0], 0), "eval/pass@1"),
            accuracy(eval_row(group.runs[0], -1), "eval/pass@1"),
        )
        if verdict_of(*pair) == "fell":
            signs.append("accuracy fell")
    if len(signs) < 2:
        return ""
    return f"Signs of collapse: {', '.join(signs[:-1])} and {signs[-1]}."


def level_of(run: RunData) -> str:
    """The level of the run's intervals, "95 %"."""
    return f"{100 * (number(run.setting('eval.confidence')) or 0.95):g}{NBSP}%"


def show_interval(triple: Triple) -> str:
    """ "57.0–69.0 %", or "" where there is no interval."""
    _, low, high = triple
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}{NBSP}%"
