"""The same question asked in other ways in the same step (vote.views), and the votes on all of them as one.

A view is another `Question` with a prompt of its own; a step samples as many responses to it as to the question itself.
`VIEWS` lists the built-in ones.  Nothing is remembered from step to step: random choices are named by the seed, the
step, the question and the view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from typing import Any

from spinerl.answers import Equivalence, pool_votes
from spinerl.answers.options import choice_lines, permute_options, permuted_places, shows_choices
from spinerl.answers.strip import after_last_thought, strip_thoughts
from spinerl.answers.votes import by_question
from spinerl.config import Config
from spinerl.engine.sampler import sample_responses
from spinerl.errors import RunError
from spinerl.hooks import ask_otherwise, blank_around, read_again
from spinerl.images import augmented_image
from spinerl.models.loading import LoadedModel
from spinerl.plugins import find
from spinerl.seeding import seed_of
from spinerl.step import sample
from spinerl.templates import TOKEN_CHARS, TemplateFaultError, apply_template, name_of
from spinerl.types import OnTokens, Question, Rollout, Vote

__all__ = ["VIEWS", "Asked", "Views", "rephrase"]

View = Callable[[Question, Random], Question | str | None]
"""(question, random choices) -> the question asked differently, or only its text; None where it cannot be."""


@dataclass(frozen=True)
class Asked:
    """All that a step asks, each question followed by its views; `num_tokens` were sampled to write them.

    `as_is_frac`: views that cannot be, which ask the question as it stands.
    """

    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    num_tokens: int
    as_is_frac: float


class Views:
    """Asks a step's questions in the ways that vote.views lists, and counts the votes on all of them together."""

    def __init__(self, config: Config, render: Callable[[Question], tuple[int, ...]]) -> None:
        """`render`: a question's prompt."""
        self._config, self._render = config, render
        self._as_is_frac = 0.0

    def ask(
        self,
        policy: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        step: int,
        on_tokens: OnTokens | None = None,
    ) -> Asked:
        """Each question followed by its views, which are written by the policy where they are rephrased.

        A view whose prompt is too long (prompt.max_tokens, the model's context), or that a question cannot have, is the
        question as it stands, sampled once more.  Raises InputError for what a plug-in returns.
        """
        config, names = self._config, self._config.vote.views
        written: dict[int, Sequence[str | None]] = {}
        num_tokens = 0
        for number, name in enumerate(names):
            if name == "rephrase":
                seed = (config.seed, "rephrase", number, step)
                written[number], num = rephrase(policy, questions, config, seed, on_tokens)
                num_tokens += num
        asked: list[Question] = []
        shown: list[tuple[int, ...]] = []
        as_is = 0
        for place, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
            asked.append(question)
            shown.append(prompt)
            for number, name in enumerate(names):
                random = Random(seed_of(config.seed, "view", step, question.id, number))
                found = written[number][place] if number in written else self._view(question, name, random)
                view = _complete(question, found, name, number)
                ids = prompt if found is None else self._render(view)
                if len(ids) > max(len(prompt), _longest(policy, config)):
                    view, ids, found = _complete(question, None, name, number), prompt, None
                as_is += found is None
                asked.append(view)
                shown.append(ids)
        return Asked(tuple(asked), tuple(shown), num_tokens, as_is / (len(questions) * len(names)))

    def draw(
        self,
        policy: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        step: int,
        on_tokens: OnTokens | None = None,
    ) -> tuple[Rollout, int]:
        """(responses to all that is asked, 0); the tokens of what was written to ask it count as sampled."""
        asked = self.ask(policy, questions, prompts, step, on_tokens)
        self._as_is_frac = asked.as_is_frac
        rollout = sample(policy, asked.questions, asked.prompts, self._config, step, on_tokens)
        if asked.num_tokens:
            rollout = replace(rollout, num_drawn=rollout.total_drawn + asked.num_tokens)
        return rollout, 0

    def vote(
        self,
        rollout: Rollout,
        fresh: Sequence[Vote],
        weights: Sequence[float],
        sampled: int,
        equivalence: Equivalence,
    ) -> tuple[tuple[Vote, ...], dict[str, float]]:
        """(for each question and view of a rollout the vote over all views of the question; their metrics).

        views/agreement: views whose own responses have the winner that the question's own have, of those where both
        have one.  views/share: the label's share of all votes, mean.  views/as_is_frac: views that could not be, and
        asked the question as it stands.

        Args:
            fresh: the vote on each by its own responses.
            weights: what each response's vote weighs, question-major.
            sampled: the step, which names the draws of ties that are broken at random.
        """
        config, size = self._config, 1 + len(self._config.vote.views)
        votes: list[Vote] = []
        own_weights = by_question(weights, fresh)
        agree: list[bool] = []
        for first in range(0, len(fresh), size):
            group = fresh[first : first + size]
            pooled = pool_votes(
                group,
                own_weights[first : first + size],
                config.answer.kind_of(rollout.questions[first].answer_kind),
                equivalence,
                pool=config.vote.pool,
                seed=config.seed + sampled,
                **config.vote.rules,
            )
            votes += pooled
            winners = [_winner_among(one, own) for one, own in zip(pooled, group, strict=True)]
            agree += [number == winners[0] for number in winners[1:] if None not in (number, winners[0])]
        own = [one for one, question in zip(votes, rollout.questions, strict=True) if not question.view]
        return tuple(votes), {
            "label/labelled_frac": fmean(one.winner is not None for one in own),
            "views/share": fmean(one.majority_frac for one in own),
            "views/as_is_frac": self._as_is_frac,
            **({"views/agreement": fmean(agree)} if agree else {}),
        }

    def _view(self, question: Question, name: str, random: Random) -> Question | str | None:
        if name == "permuted-options" and self._config.answer.kind_of(question.answer_kind) not in ("choice", "auto"):
            return None  # the options are only named in answers that are letters
        return ask_otherwise(question, find(VIEWS, name, "vote.views"), name, random)


def rephrase(
    policy: LoadedModel,
    questions: Sequence[Question],
    config: Config,
    seed: tuple[object, ...],
    on_tokens: OnTokens | None = None,
) -> tuple[list[str | None], int]:
    """(each question in the policy's own other words, None where it wrote none that can be used; tokens sampled).

    It is sampled at the rollout's temperature and length.  Lines of options stay as they are; where options stand
    elsewhere in the text, a text that does not show them all behind their letters is not used, nor is one that is cut
    off, or says the same.  Images are not shown, and come before the new text.
    """
    stems, ends = zip(*map(_split, questions), strict=True)
    requests = [_request(policy, stem, config) for stem in stems]
    places = [place for place, ids in enumerate(requests) if len(ids) <= _longest(policy, config)]
    texts: list[str | None] = [None] * len(questions)
    if not places:
        return texts, 0
    asked = [replace(questions[place], images=()) for place in places]
    prompts = [requests[place] for place in places]
    written = sample_responses(policy, asked, prompts, 1, config.rollout, seed, on_tokens)
    for place, text, finished in zip(places, written.texts, written.finished_mask.tolist(), strict=True):
        new = after_last_thought(strip_thoughts(text).text).strip().replace("<image>", "the image")
        if not _uses_template(policy, config):
            new = new.partition("\n")[0].strip()  # a base model goes on with something else
        options = () if ends[place] else questions[place].choices
        if finished and new and new != stems[place] and shows_choices(new, options):
            texts[place] = f"{new}{ends[place]}"
    return texts, written.total_drawn


def _split(question: Question) -> tuple[str, str]:
    """(a question's text without the lines of its options, these lines)."""
    lines = "".join(f"\n{line}" for line in choice_lines(question.choices))
    stem = question.text.removesuffix(lines)
    return stem.replace("<image>", "the image"), question.text[len(stem) :]


def _request(policy: LoadedModel, text: str, config: Config) -> tuple[int, ...]:
    """A prompt that asks for a question in other words."""
    tokenizer: Any = policy.tokenizer
    template = None if policy.vision is None else policy.vision.chat_template
    if not _uses_template(policy, config):
        asked = f"Question: {text}\n\nThe same question in other words:"
        return tuple(tokenizer(asked[: TOKEN_CHARS * config.prompt.max_tokens])["input_ids"])
    request = (
        "Write the following question in other words. Keep every number, name, quantity and condition, and ask for the "
        f"same answer. Do not solve it; write only the question.\n\n{text}"
    )
    content: Any = request if policy.vision is None else [{"type": "text", "text": request}]
    try:
        shown = apply_template(
            tokenizer, [{"role": "user", "content": content}], config.prompt.template_options, template
        )
    except TemplateFaultError as error:
        raise RunError(f"the chat template of {name_of(tokenizer)} refuses a request ({error})") from None
    return tuple(tokenizer(shown, add_special_tokens=False)["input_ids"])


def _winner_among(pooled: Vote, own: Vote) -> int | None:
    """The winner of a view's own responses, by its number among all views' classes."""
    return None if own.winner is None else pooled.classes[own.classes.index(own.winner)]


def _uses_template(policy: LoadedModel, config: Config) -> bool:
    owner = policy.tokenizer if policy.vision is None else policy.vision
    return config.prompt.chat_template != "off" and bool(getattr(owner, "chat_template", None))


def _complete(question: Question, found: Question | str | None, name: str, number: int) -> Question:
    """What was found for a view, as a question with an id of its own."""
    if found is None:
        found = question
    if isinstance(found, str):
        found = replace(question, text=found)
    return replace(found, id=f"{question.id}/view {number + 1}", view=name)


def _longest(policy: LoadedModel, config: Config) -> int:
    """The longest prompt of a view, in tokens."""
    context = policy.context
    most = config.prompt.max_tokens
    return most if context is None else min(most, context - config.rollout.max_new_tokens)


def _permuted(question: Question, random: Random) -> Question | None:
    order = permuted_places(question.text, question.choices, random)
    if order is None:
        return None
    text, choices, letters = permute_options(question.text, question.choices, order)
    return replace(question, text=text, choices=choices, letters=letters)


def _augmented(question: Question, random: Random) -> Question | None:
    if not question.images:
        return None
    return replace(question, images=tuple(augmented_image(image, random) for image in question.images))


def _again(question: Question, random: Random) -> Question:  # noqa: ARG001 - every view has the same shape
    return question


def _blank(question: Question, random: Random) -> str:  # noqa: ARG001
    return blank_around(question.text)


def _reread(question: Question, random: Random) -> str:  # noqa: ARG001
    return read_again(question.text.replace("<image>", "the image")) if question.images else read_again(question.text)


def _rephrased(question: Question, random: Random) -> None:
    """`Views.ask` has the policy write all of a step's at once."""


VIEWS: dict[str, View] = {
    "again": _again,
    "blank": _blank,
    "reread": _reread,
    "rephrase": _rephrased,
    "permuted-options": _permuted,
    "augmented-images": _augmented,
}
"""Ways to ask a question, by the name configurations use."""
