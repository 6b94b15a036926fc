"""Scoring finished responses, and learning from them.

`spinerl.engine.forward` says which rows run together and gives the hidden states at the wanted positions.  The LM head
works on only those, a chunk at a time: the loss is a weighted sum over tokens, its weights fixed beforehand, so each
chunk goes backward at once and the (tokens, vocabulary) matrix never exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch

from spinerl.config import Config, LossConfig, OptimConfig
from spinerl.engine.backend import ForwardPath, backend_of
from spinerl.engine.forward import Piece, Prefix, logits, plan, wanted_states
from spinerl.engine.lm_head import chunks
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampling import Truncation, log_mass_with, truncation_of
from spinerl.errors import NonFiniteError
from spinerl.machine import to_device
from spinerl.maths import (
    band_penalty,
    budget_weights,
    calibration_surrogate,
    cispo_surrogate,
    clipped_surrogate,
    exact_kl,
    log_distribution,
    nll_surrogate,
    preference_surrogate,
    response_means,
    row_means,
    sampled_kl,
    sequence_surrogate,
    share_weights,
    term_weights,
    token_figures,
    top_margins,
)
from spinerl.models.loading import LoadedModel
from spinerl.types import Batch, Targets

__all__ = [
    "Terms",
    "embed_responses",
    "predicting_states",
    "score",
    "score_with_mass",
    "token_margins",
    "update",
    "wanted_tokens",
    "weigh_terms",
]


def score(
    loaded: LoadedModel, batch: Batch, wanted: torch.Tensor, optim: OptimConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, entropies) of the wanted tokens, both (B, T) on the CPU; 0.0 elsewhere.

    float32, or float64 for a float64 model.
    """
    logprobs, entropies, _ = score_with_mass(loaded, batch, wanted, optim, None)
    return logprobs, entropies


def score_with_mass(
    loaded: LoadedModel, batch: Batch, wanted: torch.Tensor, optim: OptimConfig, truncate: Truncation | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same and `Rollout.log_mass` (B, T) under this truncation; 0.0 without one."""

    def figures(scores: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = token_figures(scores, tokens, batch.temperature)
        return found if truncate is None else (*found, log_mass_with(scores, tokens, batch.temperature, truncate))

    logprobs, entropies, log_mass = _figures_at(loaded, batch, wanted, optim, figures, 3)
    return logprobs, entropies, log_mass


def token_margins(loaded: LoadedModel, batch: Batch, optim: OptimConfig) -> torch.Tensor:
    """`maths.top_margins` (B, T) of the distribution of each token, on the CPU; 0.0 on padding."""

    def figures(scores: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ARG001
        return (top_margins(log_distribution(scores, batch.temperature)),)

    return _figures_at(loaded, batch, batch.mask, optim, figures, 1)[0]


@torch.no_grad()
def _figures_at(
    loaded: LoadedModel,
    batch: Batch,
    wanted: torch.Tensor,
    optim: OptimConfig,
    figures: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    num: int,
) -> tuple[torch.Tensor, ...]:
    """`num` tables (B, T) on the CPU, with what `figures` computes of the logits (n, V) at the wanted tokens (n,)."""
    dtype = torch.promote_types(loaded.model.dtype, torch.float32)
    tables = tuple(torch.zeros(batch.tokens.shape, dtype=dtype) for _ in range(num))
    cells: list[tuple[torch.Tensor, torch.Tensor]] = []
    # (at most num, N) each, on the device: they are read at the end, for that waits for it.
    found: list[torch.Tensor] = []
    pieces, path = plan(loaded, batch, wanted, optim), backend_of(loaded).forward()
    with path.running():
        for piece in pieces:
            prefix = _prefix(loaded, piece, path)
            for micro in piece.micros:
                states = wanted_states(loaded, micro, prefix, path)
                tokens = to_device(batch.tokens[micro.row_of, micro.column_of], loaded.device)
                cells.append((micro.row_of, micro.column_of))
                for part in chunks(len(states), loaded.vocab_size, optim.head_chunk):
                    found.append(torch.stack(figures(logits(loaded, states[part]), tokens[part])))
    if found:
        cell = tuple(map(torch.cat, zip(*cells, strict=True)))
        for table, values in zip(tables, torch.cat(found, dim=1).cpu(), strict=False):
            table[cell] = values
    return tables


@torch.no_grad()
def embed_responses(loaded: LoadedModel, batch: Batch, optim: OptimConfig) -> torch.Tensor:
    """A vector (B, d) for each response: the mean of its last hidden states, float32 on the CPU; 0 without tokens."""
    means: torch.Tensor | None = None
    path = backend_of(loaded).forward()
    for piece in plan(loaded, batch, batch.mask, optim):
        prefix = _prefix(loaded, piece, path)
        for micro in piece.micros:
            states = wanted_states(loaded, micro, prefix, path).float().cpu()
            found = row_means(states, micro.row_of, len(batch.tokens))
            means = found if means is None else means + found  # a row's tokens are all in one micro-batch
    return torch.zeros(len(batch.tokens), 1) if means is None else means


@torch.no_grad()
def predicting_states(
    loaded: LoadedModel, batch: Batch, wanted: torch.Tensor, optim: OptimConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(states (N, d), rows (N,), columns (N,)): the last hidden states that predict the wanted (B, T) tokens.

    States are on the model's device and in its type; rows and columns on the CPU, by row, then column.
    `engine.lm_head.head_logits` makes logits of states.
    """
    path = backend_of(loaded).forward()
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for piece in plan(loaded, batch, wanted, optim):
        prefix = _prefix(loaded, piece, path)
        for micro in piece.micros:
            found.append((wanted_states(loaded, micro, prefix, path), micro.row_of, micro.column_of))
    states, rows, columns = map(torch.cat, zip(*found, strict=True))
    order = (rows * batch.tokens.shape[1] + columns).argsort()
    return states[to_device(order, states.device)], rows[order], columns[order]


def update(
    loaded: LoadedModel,
    anchor: LoadedModel | None,
    batch: Batch,
    targets: Targets,
    optimizer: Optimizer,
    config: Config,
    rows: torch.Tensor,
    on_policy: bool = True,
) -> dict[str, float]:
    """One optimizer update from these rows (an index into the batch), and what it saw.

    L = - sum w_policy l_PPO + lambda_KL sum w_anchor l_KL + lambda_band sum w_band l_band + lambda_H sum w_H H, each
    term's weights fixed here for the whole update, so that the micro-batch size changes nothing.

    Args:
        on_policy: the weights are still those that `old_logprobs` are of.

    Raises NonFiniteError before the weights change, if the loss or the gradient is not finite.
    """
    chosen = torch.zeros(len(batch.tokens), 1, dtype=torch.bool)
    chosen[rows] = True
    weights = weigh_terms(targets, batch.mask, chosen, config)
    wanted = wanted_tokens(targets, weights, all_targets=config.loss.form == "calibration")
    truncate = truncation_of(config.rollout, loaded) if config.rollout.scored == "truncated" else None
    log_ratios = None
    if config.loss.form == "sequence":
        log_ratios = torch.zeros(len(batch.tokens))
        if not on_policy:
            asked = targets.policy_mask & chosen
            now, _, log_mass = score_with_mass(loaded, batch, asked, config.optim, truncate)
            log_ratios = response_means((now - log_mass - targets.old_logprobs) * chosen, asked)
    if config.loss.form == "dpo":
        asked = targets.policy_mask & chosen
        now = targets.old_logprobs if on_policy else score(loaded, batch, asked, config.optim)[0]
        log_ratios = _gaps(now, targets, asked, config.group_size)
    terms = Terms(config, batch, targets, weights, log_ratios, truncate)
    optimizer.zero_grad()
    loaded.model.train(config.model.gradient_checkpointing)
    exact_anchor = anchor if terms.wants_anchor_logits else None
    path = backend_of(loaded).forward(batch.activations)
    anchor_path = None if exact_anchor is None else backend_of(exact_anchor).forward()
    pieces = plan(loaded, batch, wanted, path.optim(config.optim), pads=path.pads or exact_anchor is not None)
    with path.running(), nullcontext() if anchor_path is None else anchor_path.running():
        for piece in pieces:
            _learn_piece(loaded, exact_anchor, piece, terms, optimizer, path, anchor_path, config.optim.head_chunk)
    loaded.model.eval()
    figures = terms.figures()
    if not math.isfinite(figures["loss/total"]):
        raise NonFiniteError(
            f"the loss is {figures['loss/total']}: stopped before the update; lower optim.lr (now {config.optim.lr:g}) "
            "or use model.dtype=float32"
        )
    return figures | optimizer.step()


def _gaps(now: torch.Tensor, targets: Targets, asked: torch.Tensor, group_size: int) -> torch.Tensor:
    """For each row (B,) the gap of its question's pair: sum_t log pi/ref of the preferred response less the other's."""
    assert targets.anchor_logprobs is not None
    ratios = ((now.double() - targets.anchor_logprobs) * asked).sum(dim=1)
    signs = targets.advantages[:, 0].sign()  # of a response without tokens 0: it has no sum either
    by_question = (ratios * signs).view(-1, group_size).sum(dim=1)
    return by_question.repeat_interleave(group_size)


def _learn_piece(
    loaded: LoadedModel,
    anchor: LoadedModel | None,
    piece: Piece,
    terms: Terms,
    optimizer: Optimizer,
    path: ForwardPath,
    anchor_path: ForwardPath | None,
    head_chunk: int,
) -> None:
    """Forward and backward of one piece.  The anchor model runs too where its logits are wanted."""
    prefix = _prefix(loaded, piece, path)
    with torch.no_grad():
        anchor_prefix = None if anchor is None else _prefix(anchor, piece, anchor_path)
    for micro in piece.micros:
        states = wanted_states(loaded, micro, prefix, path)
        with torch.no_grad():
            anchor_states = None if anchor is None else wanted_states(anchor, micro, anchor_prefix, anchor_path)
        grads = []
        for part in chunks(len(states), loaded.vocab_size, head_chunk):
            leaf = states[part].detach().requires_grad_()
            anchor_logits = None
            if anchor is not None and anchor_states is not None:
                with torch.no_grad():
                    anchor_logits = logits(anchor, anchor_states[part])
            terms.loss(logits(loaded, leaf), anchor_logits, micro.row_of[part], micro.column_of[part]).backward()
            grads.append(leaf.grad)
        states.backward(torch.cat(grads))
        optimizer.collect()
    if prefix is not None:
        prefix.backward()
        optimizer.collect()


def _prefix(loaded: LoadedModel, piece: Piece, path: ForwardPath | None) -> Prefix | None:
    """The prompts that a piece's rows continue, if they do."""
    return Prefix(loaded, piece.prefixes, path) if piece.prefixes else None


class Terms:
    """The loss at some cells of the batch, and the sums of what it was made of."""

    def __init__(
        self,
        config: Config,
        batch: Batch,
        targets: Targets,
        weights: dict[str, torch.Tensor],
        log_ratios: torch.Tensor | None,
        truncate: Truncation | None = None,
    ) -> None:
        """`truncate`: the policy term's log-probabilities are of the distribution truncated so; entropies and the
        anchor's are of the full one."""
        self._truncate = truncate
        self._config, self._batch, self._targets = config, batch, targets
        self._weights, self._log_ratios = weights, log_ratios
        self._sums: dict[str, torch.Tensor] = {}
        self._max_log_ratio: torch.Tensor | None = None
        self.wants_anchor_logits = "anchor" in weights and config.anchor.estimator == "exact"

    def loss(
        self,
        logits: torch.Tensor,
        anchor_logits: torch.Tensor | None,
        row_of: torch.Tensor,
        column_of: torch.Tensor,
    ) -> torch.Tensor:
        """The loss's share of the tokens at these cells, from their logits (N, V)."""
        temperature = self._batch.temperature
        tokens = to_device(self._batch.tokens[row_of, column_of], logits.device)
        logprobs, entropies = token_figures(logits, tokens, temperature)
        kl = None
        if anchor_logits is not None:
            kl = exact_kl(log_distribution(logits, temperature), anchor_logits, temperature)
        if self._truncate is not None:
            if kl is None and "anchor" in self._weights:
                kl = self._sampled_kl(logprobs, row_of, column_of)
            logprobs = logprobs - log_mass_with(logits, tokens, temperature, self._truncate)
        return self.loss_of(logprobs, entropies, kl, row_of, column_of)

    def loss_of(
        self,
        logprobs: torch.Tensor,
        entropies: torch.Tensor,
        kl: torch.Tensor | None,
        row_of: torch.Tensor,
        column_of: torch.Tensor,
    ) -> torch.Tensor:
        """The same from their log-probabilities and entropies (N,), and exact KLs where the anchor term needs them."""
        config, targets = self._config, self._targets
        cell = (row_of, column_of)

        def at(tensor: torch.Tensor, index: tuple[torch.Tensor, ...] = cell) -> torch.Tensor:
            return to_device(tensor[index].to(logprobs.dtype), logprobs.device)

        old, advantages, weights = at(targets.old_logprobs), at(targets.advantages), at(self._weights["policy"])
        log_ratios = None if self._log_ratios is None else at(self._log_ratios, (row_of,))
        if config.loss.form == "dpo":
            assert log_ratios is not None
            lengths = at(targets.policy_mask.sum(dim=1), (row_of,))
            surrogate = preference_surrogate(logprobs, advantages, log_ratios, lengths, config.loss.beta)
        else:
            surrogate = _surrogate(logprobs, old, advantages, log_ratios, config.loss)
        loss = self._add("policy", -(weights * surrogate).sum())
        if "anchor" in self._weights:
            if kl is None:
                kl = self._sampled_kl(logprobs, row_of, column_of)
            loss = loss + config.anchor.weight * self._add("anchor", (at(self._weights["anchor"]) * kl).sum())
        if "band" in self._weights:
            assert targets.band_low is not None
            assert targets.band_high is not None
            low, high = at(targets.band_low, (row_of,)), at(targets.band_high, (row_of,))
            relative = (weight / config.band.coefficient for weight in config.band.weights)
            penalty = band_penalty(entropies, low, high, config.band.shape, *relative)
            loss = loss + config.band.coefficient * self._add("band", (at(self._weights["band"]) * penalty).sum())
        if "entropy" in self._weights:
            mean = self._add("entropy", (at(self._weights["entropy"]) * entropies).sum())
            loss = loss + config.entropy.weight * mean
        self._watch_ratio((logprobs - old).detach(), advantages, weights)
        return loss

    def _sampled_kl(self, logprobs: torch.Tensor, row_of: torch.Tensor, column_of: torch.Tensor) -> torch.Tensor:
        """The anchor term (N,) from the full distributions' log-probabilities."""
        anchor_logprobs, estimator = self._targets.anchor_logprobs, self._config.anchor.estimator
        assert anchor_logprobs is not None
        assert estimator != "exact"
        at_cells = to_device(anchor_logprobs[row_of, column_of].to(logprobs.dtype), logprobs.device)
        return sampled_kl(logprobs, at_cells, estimator)

    def figures(self) -> dict[str, float]:
        """What was seen, over all cells so far."""
        seen = self._sums if self._max_log_ratio is None else {**self._sums, "log_ratio_max": self._max_log_ratio}
        # All at once: each reading would make the CPU wait for the device.
        sums = dict(zip(seen, torch.stack(list(seen.values())).tolist() if seen else (), strict=True))
        policy, clipped, log_ratio = (sums.get(name, 0.0) for name in ("policy", "clipped", "log_ratio"))
        figures = {
            "loss/total": policy,
            "loss/policy": policy,
            "loss/clipped_frac": clipped,
            "loss/log_ratio": log_ratio,
            "loss/log_ratio_max": sums.get("log_ratio_max", 0.0),
        }
        for name in [name for name in self._weights if name != "policy"]:  # in order: a sum's last bit depends on it
            section = getattr(self._config, name)
            coefficient = section.coefficient if name == "band" else section.weight
            figures[f"loss/{name}"] = sums.get(name, 0.0)
            figures["loss/total"] += coefficient * figures[f"loss/{name}"]
        return figures

    def _watch_ratio(self, log_ratio: torch.Tensor, advantages: torch.Tensor, weights: torch.Tensor) -> None:
        loss = self._config.loss
        lowest = -math.log1p(-loss.clip_low) if loss.clip_low < 1 else math.inf
        limit = torch.where(advantages > 0, math.log1p(loss.clip_high), lowest)
        if loss.form in ("nll", "dpo", "calibration"):
            limit = math.inf  # nothing is clipped
        clipped = (log_ratio * advantages.sign() > limit) & (advantages != 0)
        self._add("clipped", (weights * clipped).sum())
        self._add("log_ratio", (weights * log_ratio.abs()).sum())
        largest = (log_ratio.abs() * (weights > 0)).max()
        before = self._max_log_ratio
        self._max_log_ratio = largest if before is None else torch.maximum(before, largest)

    def _add(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The value itself, after adding it to its sum (on the device: reading it would make the CPU wait)."""
        self._sums[name] = self._sums.get(name, 0.0) + value.detach()  # pyright: ignore[reportArgumentType]
        return value


def wanted_tokens(targets: Targets, weights: dict[str, torch.Tensor], all_targets: bool = False) -> torch.Tensor:
    """The tokens (B, T) at which some term has a gradient: no other needs its logits.

    `all_targets`: an advantage of 0 is a target like any other (loss.form=calibration).
    """
    wanted = weights["policy"] > 0
    if not all_targets:
        wanted = wanted & (targets.advantages != 0)
    for name in weights.keys() - {"policy"}:
        wanted = wanted | (weights[name] > 0)
    return wanted


def weigh_terms(targets: Targets, mask: torch.Tensor, chosen: torch.Tensor, config: Config) -> dict[str, torch.Tensor]:
    """The weights (B, T) of each term that acts in this update, by the name of its section of the configuration.

    Args:
        mask: (B, T), True on response tokens.
        chosen: (B, 1), True for the rows of the update.
    """
    normalizer = config.loss.normalizer
    num_tokens = int((mask & chosen).sum())

    def weigh(term_mask: torch.Tensor, name: str) -> torch.Tensor:
        if name == "policy" and normalizer == "budget":
            return budget_weights(term_mask, _most_selected(config), int(chosen.sum()))
        if name != "anchor" and normalizer == "response-tokens":
            return share_weights(term_mask, num_tokens)
        return term_weights(term_mask, "response" if normalizer == "response" else "token")

    weights = {"policy": weigh(targets.policy_mask & chosen, "policy")}
    if config.loss.form == "dpo":  # a sum over the tokens of each pair, a mean over pairs
        preferred = (targets.policy_mask & chosen & (targets.advantages > 0)).any(dim=1)
        weights["policy"] = share_weights(targets.policy_mask & chosen, int(preferred.sum()))
    for name, term_mask, coefficient in (
        ("anchor", targets.anchor_mask, config.anchor.weight),
        ("band", targets.band_mask, config.band.coefficient),
        ("entropy", targets.entropy_mask, config.entropy.weight),
    ):
        if term_mask is not None and coefficient != 0.0:
            weights[name] = weigh(term_mask & chosen, name)
    return weights


def _most_selected(config: Config) -> int:
    """The most tokens of a response that can be selected."""
    longest, forks = config.rollout.max_new_tokens, config.forks
    if forks.selector == "first":
        return min(forks.num_tokens, longest)
    share = 1.0 if forks.selector in ("all", "otsu") else forks.fraction
    return math.ceil(share * longest - 1e-9)


def _surrogate(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    log_ratios: torch.Tensor | None,
    loss: LossConfig,
) -> torch.Tensor:
    if loss.form == "nll":
        return nll_surrogate(logprobs, advantages)
    if loss.form == "calibration":
        return calibration_surrogate(logprobs, advantages, loss.beta)
    if log_ratios is not None:
        return sequence_surrogate(logprobs, log_ratios, advantages, loss.clip_low, loss.clip_high)
    form = cispo_surrogate if loss.form == "cispo" else clipped_surrogate
    return form(logprobs, old, advantages, loss.clip_low, loss.clip_high)
