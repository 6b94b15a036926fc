"""Rules between keys: which values cannot go with which, and what is said of them."""

from __future__ import annotations

from spinerl.config.keys import STANDARD_INPUT, Config, SteerConfig
from spinerl.errors import short

__all__ = ["checks"]


def checks(config: Config) -> list[tuple[bool, str]]:
    """(whether it holds, what to say if not) of every rule between keys."""
    rules = (_checks, _answer_checks, _stream_checks, _calibration_checks, _gold_checks, _vote_checks)
    return [rule for of_one in rules for rule in of_one(config)]


def _checks(config: Config) -> list[tuple[bool, str]]:
    """Of the rules that are neither about gold answers nor about votes."""
    return [
        (
            config.rollout.num_votes in (0,) or config.rollout.num_votes >= config.group_size,
            f"rollout.num_votes={config.rollout.num_votes} is under group_size={config.group_size}: "
            "every trained response votes; raise it or set 0",
        ),
        (
            config.band.low <= config.band.high,
            f"band.low={config.band.low} is above band.high={config.band.high}; the lower edge comes first",
        ),
        (
            config.model.quantize == "none" or (bool(config.lora.rank) or not config.steps),
            f"model.quantize={config.model.quantize}: weights in 4 bits do not learn; set lora.rank",
        ),
        (
            config.model.quantize == "none" or config.rollout.sampler == "native",
            f"model.quantize={config.model.quantize} cannot go with rollout.sampler={config.rollout.sampler}",
        ),
        (
            config.optim.minibatches <= config.questions_per_step,
            f"optim.minibatches={config.optim.minibatches} is more than questions_per_step={config.questions_per_step}",
        ),
        (
            config.tree.bases == 0
            or config.tree_bases * (1 + config.tree.forks * config.tree.branches) == config.num_votes,
            f"a tree of {config.tree_bases} * (1 + tree.forks={config.tree.forks} * tree.branches="
            f"{config.tree.branches}) responses per question does not make {config.num_votes} (rollout.num_votes, or "
            "group_size); change tree.bases, tree.forks or tree.branches",
        ),
        (
            config.advantage.credit == "response" or config.advantage.scope == "group",
            "advantage.credit=prefix-tree needs advantage.scope=group: its tree is that of one question's responses",
        ),
        (
            config.advantage.credit == "response" or config.advantage.scale in ("std", "none"),
            "advantage.credit=prefix-tree needs advantage.scale=std or none: it shares out what is centred",
        ),
        (
            config.advantage.scope == "group" or config.advantage.scale in ("std", "none", "raw"),
            f"advantage.scale={config.advantage.scale} needs advantage.scope=group: it is of one question's responses",
        ),
        (
            config.group_size > 1 or config.advantage.scale == "raw" or config.reward == "none" or config.steps == 0,
            "group_size=1 leaves a response nothing to be compared with: set 2 or more, or advantage.scale=raw",
        ),
        (
            config.data.min_agreement <= config.data.max_agreement,
            f"data.min_agreement={config.data.min_agreement} is over data.max_agreement={config.data.max_agreement}",
        ),
        (config.data.target != STANDARD_INPUT, "data.target=-: only data=- reads standard input; name a file"),
        (
            not config.data.by_agreement or (config.rollout.reuse == 1 and not config.stream.on),
            "data.min_agreement and data.max_agreement need questions that come again with fresh votes: not with "
            "stream.on or rollout.reuse",
        ),
        (
            config.loss.form != "dpo"
            or (config.reward == "pairs" and config.advantage.scale == "raw" and config.num_votes == config.group_size),
            f"loss.form=dpo needs a pair of trained responses to each question: reward=pairs, advantage.scale=raw and "
            f"rollout.num_votes=0 (now {config.reward}, {config.advantage.scale}, {config.rollout.num_votes})",
        ),
        (
            config.method != "none" or config.steps == 0,
            f"method=none only evaluates: steps={config.steps} must be 0; choose another method to adapt",
        ),
        (
            config.rollout.sampler == "native" or config.reward != "self-certainty",
            "reward=self-certainty needs whole distributions, which rollout.sampler=vllm does not give; use native",
        ),
    ]


def _answer_checks(config: Config) -> list[tuple[bool, str]]:
    """As `_checks`, of the rules about other ways to answer."""
    return [
        (
            config.steer.adapted is not None or config.steer == SteerConfig(),
            "steer.base and steer.weight are about a model that steers: set steer.adapted",
        ),
        (
            config.steer.adapted is None or (not config.steps and config.rollout.sampler == "native"),
            f"steer.adapted={config.steer.adapted}: a steered model only answers, by our own sampler: set method=none "
            "(or use `spinerl eval`) and rollout.sampler=native",
        ),
        (
            not config.eval.views or config.rollout.sampler == "native",
            f"eval.views cannot go with rollout.sampler={config.rollout.sampler}, which has no mean of distributions",
        ),
    ]


def _stream_checks(config: Config) -> list[tuple[bool, str]]:
    """As `_checks`, of the rules about streams."""
    return [
        (
            config.stream.on
            or (config.stream.answer, config.stream.steps_each, config.stream.episodic) == ("before", 1, False),
            "stream.answer, stream.steps_each and stream.reset_every=-1 are about streams: set stream.on=true",
        ),
        (
            config.rollout.reuse == 1 or not config.stream.on,
            f"rollout.reuse={config.rollout.reuse} cannot go with stream.on: the questions of a stream come once",
        ),
        (
            not (config.anchor.fisher and config.stream.reset_every),
            f"anchor.fisher={config.anchor.fisher} cannot go with stream.reset_every: it holds what is reset anyway",
        ),
    ]


def _calibration_checks(config: Config) -> list[tuple[bool, str]]:
    """As `_checks`, of the rules about loss.form=calibration."""
    off, form = config.loss.form != "calibration", "loss.form=calibration"
    return [
        (
            off or config.advantage.scale == "raw",
            f"{form} learns the reward itself: set advantage.scale=raw (now {config.advantage.scale})",
        ),
        (
            off or (config.rollout.sampler == "native" and config.rollout.scored == "full"),
            f"{form} scores with the model itself: it needs rollout.sampler=native and rollout.scored=full",
        ),
        (
            off or (config.forks.selector == "all" and config.advantage.credit == "response"),
            f"{form} has one token of each response to learn from: set forks.selector=all and "
            "advantage.credit=response",
        ),
    ]


def _gold_checks(config: Config) -> list[tuple[bool, str]]:
    """Of the methods that use gold answers."""
    return [
        (
            not (config.guard.probe_steps and config.uses_gold),
            f"guard.probe_steps={config.guard.probe_steps} cannot go with method={config.method}: the guard has no "
            "gold answers to learn from",
        ),
        (
            (config.reward == "gold") == (config.method == "grpo-gold"),
            f"reward={config.reward} cannot go with method={config.method}: gold answers are used only by "
            "method=grpo-gold, as an upper bound",
        ),
        (
            bool(config.feedback.questions) == (config.method == "bitta"),
            f"feedback.questions={config.feedback.questions} cannot go with method={config.method}: gold answers say "
            "yes and no only with method=bitta, which needs at least one",
        ),
        (
            not config.feedback.questions
            or (config.vote.memory == "off" and not config.vote.slow_decay and not config.vote.views),
            "method=bitta cannot go with vote.memory, vote.slow_decay or vote.views, which count other votes",
        ),
    ]


def _vote_checks(config: Config) -> list[tuple[bool, str]]:
    """Of the rules about votes and what is remembered of them."""
    return [
        (
            config.reward != "leave-one-out" or config.vote.weights == "equal" or config.vote.memory != "off",
            f"vote.weights={config.vote.weights} cannot go with reward=leave-one-out, which counts each response once",
        ),
        (
            not config.vote.memory_start or config.vote.memory != "off",
            f"vote.memory_start={config.vote.memory_start} needs a memory: set vote.memory=fixed, sum or ema",
        ),
        (
            not config.vote.slow_decay
            or (config.rollout.sampler == "native" and not config.lora.rank and not config.stream.on),
            f"vote.slow_decay={config.vote.slow_decay} needs whole weights of its own: no lora.rank, no stream.on and "
            "rollout.sampler=native",
        ),
        (
            not config.vote.slow_decay_end or bool(config.vote.slow_decay),
            f"vote.slow_decay_end={config.vote.slow_decay_end} needs a slow copy: set vote.slow_decay",
        ),
        (
            not config.vote.slow_decay or config.rollout.reuse == 1,
            f"vote.slow_decay={config.vote.slow_decay} cannot go with rollout.reuse={config.rollout.reuse}",
        ),
        *_view_checks(config),
        (
            not config.vote.memory_start or not config.stream.on,
            f"vote.memory_start={config.vote.memory_start} cannot go with stream.on: the questions of a stream are not "
            "known before step 1",
        ),
    ]


def _view_checks(config: Config) -> list[tuple[bool, str]]:
    """As `_checks`, of the rules about views of a question."""
    vote, shown = config.vote, f"vote.views={short(','.join(config.vote.views), bare=True)}"
    off = not vote.views
    return [
        (
            not off or (vote.pool == "sum" and not vote.train_views),
            "vote.pool and vote.train_views are about views of a question: set vote.views, as [rephrase]",
        ),
        (
            sum(":" in name for name in vote.views) <= 1,
            f"{shown} names more than one module:function; one is allowed",
        ),
        (
            off or (vote.memory == "off" and not vote.slow_decay),
            f"{shown} cannot go with vote.memory or vote.slow_decay, which count other votes",
        ),
        (off or not config.tree.bases, f"{shown} cannot go with tree.bases={config.tree.bases}"),
        (off or config.rollout.reuse == 1, f"{shown} cannot go with rollout.reuse={config.rollout.reuse}"),
        (off or config.reward != "gold", f"{shown} cannot go with method=grpo-gold, whose rewards are no votes'"),
        (
            vote.pool != "harmonic" or config.reward != "leave-one-out",
            "vote.pool=harmonic cannot go with reward=leave-one-out: a response has no share of its own in it",
        ),
        (
            vote.pool != "average" or (config.num_votes == 1 and config.rollout.sampler == "native"),
            f"vote.pool=average decodes one response to all views: it needs group_size=1 (now {config.num_votes}) and "
            "rollout.sampler=native",
        ),
        (
            vote.pool != "own" or vote.train_views,
            "vote.pool=own trains on the views only: set vote.train_views=true",
        ),
        (
            not vote.unsure_margin or vote.pool == "own",
            f"vote.unsure_margin={vote.unsure_margin} needs vote.pool=own",
        ),
    ]
