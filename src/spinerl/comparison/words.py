"""What a table says, in plain sentences: who gained, who beats voting at equal tokens, who declined, who forgot."""

from __future__ import annotations

from collections.abc import Sequence

from spinerl.comparison.figures import Figures, Gain
from spinerl.lines import counted

__all__ = ["num_votes", "points", "reach", "sentences", "verdict"]


def sentences(lines: Sequence[Figures], reference: str = "ttrl", level: str = "95 %") -> list[str]:
    """Paragraphs: first who beats voting at equal tokens and who does not, then one per adapted row.

    Args:
        reference: the row that others are compared with besides no adaptation.
        level: of the intervals, as text.
    """
    adapted = [line for line in lines if line.kind == "adapted"]
    if not any(line.right for line in lines):
        return ["No gold answers: accuracy is unknown, and nothing can be said about who is ahead."]
    said = [_against_voting(adapted), *(_about(line, reference) for line in adapted if line.right)]
    said = [one for one in said if one]
    return [*said, f"Brackets are {level} intervals over questions, in points where signed."] if said else []


def verdict(gain: Gain | None) -> str:
    """ "rose" if the interval is above 0, "fell" if it is below, else "".

    >>> verdict(Gain(0.1, 0.02, 0.2, 0.01, 50, {}, None, None))
    'rose'
    """
    return "" if gain is None else "rose" if gain.low > 0 else "fell" if gain.high < 0 else ""


def points(value: float) -> str:
    """A difference of shares in points, with a true sign.

    >>> points(0.0123), points(-0.5), points(0.0)
    ('+1.2', '−50.0', '±0.0')
    """
    rounded = round(100 * value, 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.1f}"


def reach(low: float, high: float, signed: bool = False) -> str:
    """An interval of shares in percent, with signs for one of differences.

    >>> reach(0.851, 0.929), reach(-0.01, 0.02, signed=True)
    ('[85.1, 92.9]', '[−1.0, +2.0]')
    """
    show = points if signed else lambda value: f"{100 * value:.1f}"
    return f"[{show(low)}, {show(high)}]"


def num_votes(number: float) -> str:
    """ "1 vote", "40.2 votes"."""
    return f"{number:.3g} vote{'' if number == 1 else 's'}"


def _against_voting(adapted: Sequence[Figures]) -> str:
    known = [line for line in adapted if line.against_votes and not line.uses_gold]
    beats = [line.name for line in known if verdict(line.against_votes) == "rose"]
    others = [line.name for line in known if line.name not in beats]
    if not known:
        return ""
    if not beats:
        return f"At equal tokens NONE beats majority voting of the unadapted model: {', '.join(others)}."
    rest = f"; these do NOT: {', '.join(others)}" if others else ""
    verb = "beats" if len(beats) == 1 else "beat"
    return f"At equal tokens {', '.join(beats)} {verb} majority voting of the unadapted model{rest}."


def _about(line: Figures, reference: str) -> str:
    assert line.right is not None
    parts = [f"{line.name}: {100 * line.right.value:.1f} % at the end"]
    if gain := line.against_none:
        how = {"rose": "better than", "fell": "WORSE than", "": "not distinguishable from"}[verdict(gain)]
        parts.append(f"{how} no adaptation: {_of(gain)}")
    if gain := line.against_reference:
        how = {"rose": "ahead of", "fell": "behind", "": "not distinguishable from"}[verdict(gain)]
        parts.append(f"{how} {reference}: {_of(gain)}")
    if (gain := line.against_votes) and line.votes and line.num_votes is not None:
        how = {"rose": "beats", "fell": "WORSE than", "": "does NOT clearly beat"}[verdict(gain)]
        capped = "; its tokens would buy more" if line.votes_capped else ""
        votes = f"{100 * line.votes.value:.1f} % with {num_votes(line.num_votes)}{capped}"
        parts.append(f"{how} voting at equal tokens ({votes}): {_of(gain)}")
    if (gain := line.against_strongest) and line.strongest:
        how = {"rose": "beats", "fell": "WORSE than", "": "does NOT clearly beat"}[verdict(gain)]
        won = f"{counted(gain.num_won, 'question')} won, {gain.num_lost} lost"
        parts.append(f"{how} the strongest baseline at its tokens ({line.strongest}): {_of(gain)}, {won}")
    parts += [part for part in (_decline(line), *_elsewhere(line)) if part]
    if line.uses_gold:
        parts.append("it uses gold answers: an upper bound, not a baseline")
    return f"{'; '.join(parts)}."


def _of(gain: Gain) -> str:
    """The difference with its interval, in how many seeds it is above 0, and whether their spread leaves doubt."""
    text = f"{points(gain.value)} {reach(gain.low, gain.high, signed=True)}"
    if len(gain.by_seed) > 1:
        text += f", above 0 in {sum(value > 0 for value in gain.by_seed.values())} of {len(gain.by_seed)} seeds"
    low, high = gain.seeds_low, gain.seeds_high
    if verdict(gain) and low is not None and high is not None and low <= 0 <= high:
        text += f", but other seeds might differ: {reach(low, high, signed=True)}"
    return text


def _decline(line: Figures) -> str:
    """Only of a decline of a point or more: less is the noise of choosing the best."""
    if line.best is None or line.last is None or line.best[1] - line.last[1] < 0.01:
        return ""
    when = "before the first step" if line.best[0] == 0 else f"at step {line.best[0]}"
    lost = 100 * (line.best[1] - line.last[1])
    return f"DECLINES: best {when} ({100 * line.best[1]:.1f} %), {lost:.1f} points lower at step {line.last[0]}"


def _elsewhere(line: Figures) -> list[str]:
    parts = []
    for figures in line.elsewhere:
        if verdict(figures.gain) and figures.gain is not None:
            did = "gains" if verdict(figures.gain) == "rose" else "loses"
            where = (
                f"on unseen questions ({figures.name})"
                if figures.role == "unseen"
                else f"on the original {figures.name}"
            )
            interval = reach(figures.gain.low, figures.gain.high, signed=True)
            parts.append(f"{did} {abs(100 * figures.gain.value):.1f} points {interval} {where}")
    return parts
