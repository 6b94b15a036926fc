"""P("Yes") that a response of the model is right, learned from vote shares (loss.form=calibration).

A row of the update is the one token "Yes" after the question, a response, and the question whether it is right.
Source: Self-Calibration (arXiv 2503.00031).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from spinerl.config import Config
from spinerl.engine.update import score
from spinerl.errors import RunError
from spinerl.models.loading import LoadedModel
from spinerl.templates import TemplateFaultError, apply_template, name_of
from spinerl.types import Batch, Rollout, Targets

__all__ = ["REQUEST", "Check", "calibration_metrics", "check_of", "checked_rows", "score_checks", "shown_targets"]

REQUEST = "Is the answer correct? (Yes/No)"
_MARK = "0123456789"  # stands for a response in the template


class Check(NamedTuple):
    """What follows a response: the tokens of the request, and that of "Yes"."""

    suffix: tuple[int, ...]
    yes: int


def check_of(policy: LoadedModel, config: Config) -> Check:
    """The request as the next turn of a chat, or as a line where there is no chat template.

    The token of "Yes" is the first at which "Yes" and "No" part; what they share before it is part of the request.
    RunError where the template refuses a chat, or the tokenizer writes both alike.
    """
    tokenizer: Any = policy.tokenizer
    owner = tokenizer if policy.vision is None else policy.vision
    template = getattr(owner, "chat_template", None) if config.prompt.chat_template != "off" else None
    text, space = f"\n{REQUEST}\nAnswer:", " "
    if template:
        said = (("user", REQUEST), ("assistant", _MARK), ("user", REQUEST))
        messages = [
            {"role": role, "content": what if policy.vision is None else [{"type": "text", "text": what}]}
            for role, what in said
        ]
        try:
            shown = apply_template(
                tokenizer, messages, config.prompt.template_options, None if policy.vision is None else template
            )
        except TemplateFaultError as error:
            raise RunError(f"the chat template of {name_of(tokenizer)} refuses a second turn ({error})") from None
        _, found, text = shown.partition(_MARK)
        if not found:
            raise RunError(f"the chat template of {name_of(tokenizer)} leaves out the assistant's turn")
        space = ""
    yes, no = (tokenizer(f"{space}{word}", add_special_tokens=False)["input_ids"] for word in ("Yes", "No"))
    place = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), None)
    if place is None:
        raise RunError(f"{name_of(tokenizer)} writes Yes and No with the same tokens: loss.form=calibration needs two")
    return Check((*tokenizer(text, add_special_tokens=False)["input_ids"], *yes[:place]), yes[place])


def checked_rows(policy: LoadedModel, rollout: Rollout, rows: torch.Tensor, config: Config) -> Batch:
    """A row (B, 1) for each of these responses: "Yes" after it and the request, at temperature 1.

    The end token of a response is left out, since the request brings its own; a row that does not fit into the model's
    context is masked.
    """
    check = check_of(policy, config)
    prompts: list[tuple[int, ...]] = []
    for row in rows.tolist():
        own = rollout.tokens[row, rollout.mask[row]].tolist()
        own = own[:-1] if own and own[-1] in policy.end_ids else own
        prompts.append(rollout.prompts[row // rollout.num_responses] + (*own, *check.suffix))
    fits = [policy.context is None or len(prompt) < policy.context for prompt in prompts]
    tokens = torch.full((len(prompts), 1), check.yes)
    return Batch(tuple(prompts), tokens, torch.tensor(fits).unsqueeze(1), 1.0)


def score_checks(policy: LoadedModel, batch: Batch, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """(log P("Yes"), entropies) (B, 1) as the model is now."""
    return score(policy, batch, batch.mask, config.optim)


def calibration_metrics(targets: Targets, batch: Batch) -> dict[str, float]:
    """Before the update, means over responses: calibration/yes, P("Yes"); calibration/error, |P("Yes") - share|."""
    if not batch.mask.any():
        return {}
    said = targets.old_logprobs[batch.mask].double().exp()
    return {
        "calibration/yes": said.mean().item(),
        "calibration/error": (said - targets.advantages[batch.mask]).abs().mean().item(),
    }


def shown_targets(targets: Targets, rollout: Rollout, rows: torch.Tensor) -> Targets:
    """The targets as a step's record has them: by the responses' own tokens, none of which is learned from."""
    mask = rollout.mask[rows]
    none = torch.zeros_like(mask)
    return Targets(
        advantages=targets.advantages[:, :1] * mask,
        old_logprobs=rollout.logprobs[rows],
        fork_mask=none,
        policy_mask=none,
        anchor_mask=None,
        anchor_logprobs=None,
        band_mask=None,
        band_low=None,
        band_high=None,
    )
