"""Shared-prefix decoding by compiled loops: attention of one new token per row, or whole decoder layers at once.

`spinerl.engine.shared_prefix` with two exchanges: a cohort's attention is one loop, and where the model is a
Llama-style decoder (`spinerl.engine.cpu.decoder`), a step takes all layers and the head in one loop.  A `Recorder`
keeps activations of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import Recorder
from spinerl.engine.cpu.decoder import DecoderStep
from spinerl.engine.shared_prefix import BLOCK_ON_CPU, Cohort, LayerState, SharedDecoder, SharedLayer
from spinerl.models.loading import LoadedModel

__all__ = ["CpuDecoder", "decode_tasks"]

_QUERIES_PER_TASK = 32  # of a head of keys: so many meet a chunk of a prompt's keys while it is in the cache
_ROWS_PER_THREAD = 4  # from so many on, each thread takes rows of its own through all layers


class CpuDecoder(SharedDecoder):
    """A `SharedDecoder` whose attention is compiled (`compiled`), and whose steps are where `step` is given.

    `rows_per_thread`: a batch with fewer rows takes its steps layer by layer, all threads at one operator.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        compiled: bool,
        step: DecoderStep | None = None,
        recorder: Recorder | None = None,
        rows_per_thread: int = _ROWS_PER_THREAD,
    ) -> None:
        self._compiled = compiled
        self._decoder_step = step
        self._recorder = recorder
        self._rows_per_thread = rows_per_thread
        super().__init__(loaded)

    def _layer(self, number: int) -> SharedLayer:
        return _RecordedLayer(number, self._windows[number], self._cohorts, self._recorder)

    def _cohort(
        self, lengths: list[int], offsets: torch.Tensor, num_responses: int, layers: list[LayerState]
    ) -> Cohort:
        return _CpuCohort(lengths, offsets, num_responses, layers, self._compiled)

    def _begin_prompts(self, prompts: Sequence[tuple[int, ...]], width: int, start: int = 0) -> None:
        if self._recorder is not None:
            self._recorder.begin_prompts(prompts, width, start)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        step = self._decoder_step
        if step is None or len(tokens) < self._rows_per_thread * torch.get_num_threads():
            return super().step(tokens)
        for cohort in self._cohorts:
            cohort.begin_token()
        positions = torch.cat([cohort.positions for cohort in self._cohorts])
        states = step.embed(tokens)
        cos, sin = step.rope(states, positions)
        slot = 0 if self._recorder is None else self._recorder.filled()
        start, logits = 0, step.new_logits(len(tokens))
        for cohort in self._cohorts:
            rows = slice(start, start + cohort.num_rows)
            cohort.step(step, states[rows], (cos[rows], sin[rows]), self._recorder, slot + start, logits[rows])
            start = rows.stop
        return step.logits(logits)


class _CpuCohort(Cohort):
    """A cohort with compiled attention, which keeps its log-sum-exp."""

    def __init__(
        self,
        lengths: list[int],
        offsets: torch.Tensor,
        num_responses: int,
        layers: list[LayerState],
        compiled: bool,
    ) -> None:
        self._compiled = compiled
        self._packed: dict[int, torch.Tensor] = {}  # the prompts' keys as the loops take them, by layer
        super().__init__(lengths, offsets, num_responses, layers)

    def attend(
        self, layer: int, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        self.lse = None
        plain = softcap is None and window is None and query.shape[-1] in kernels.head_dims()
        if not (self._compiled and plain):
            return super().attend(layer, query, scaling, softcap, window)
        state = self.layers[layer]
        prompts = (self._packed_keys(layer), state.prompt_values, self._prompt_lengths)
        tasks = self._tasks(query.shape[1] // state.prompt_keys.shape[1])
        queries = query.squeeze(2).contiguous()
        output, self.lse = kernels.decode_attention(queries, scaling, state.blocks, self._length, *prompts, *tasks)
        return output.unsqueeze(1)

    def step(
        self,
        step: DecoderStep,
        states: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        recorder: Recorder | None,
        slot: int,
        logits: torch.Tensor,
    ) -> None:
        """Take the present tokens' embeddings (R, d) through all layers: to the logits that follow (R, V or more)."""
        grown = [state.grow(self.num_rows, self._length - 1, BLOCK_ON_CPU) for state in self.layers]
        keeps = recorder is not None and recorder.keeps
        if self._addresses is None or any(grown) or keeps != self._addresses_keep:
            self._addresses, self._addresses_keep = self._addressed(step, recorder), keeps
        tasks, order = self._tasks(step.sizes[1] // step.sizes[2])
        step.run(
            states,
            rope,
            self._addresses,
            own_length=self._length,
            block_size=BLOCK_ON_CPU,
            prompt_sizes=(self._packed_keys(0)[0, 0, ..., 0, :].numel(), self.layers[0].prompt_values.shape[2]),
            prompt_lengths=self._prompt_lengths,
            tasks=tasks,
            order=order,
            slot=slot,
            logits=logits,
        )

    def release(self) -> None:
        self._addresses = None
        super().release()

    def _addressed(self, step: DecoderStep, recorder: Recorder | None) -> Any:
        """The addresses of all layers' keys and values, and of where their activations are kept."""
        _, heads, _, head_dim = step.sizes
        kept = [[] for _ in self.layers] if recorder is None else recorder.storage(step.linear, heads, head_dim)
        addresses = []
        for layer, (state, of_activations) in enumerate(zip(self.layers, kept, strict=True)):
            blocks = [[pair[i].data_ptr() for pair in state.blocks] for i in (0, 1)]
            prompts = self._packed_keys(layer).data_ptr(), state.prompt_values.data_ptr()
            addresses.append((*prompts, [*blocks, of_activations]))
        return step.states(addresses)

    def _packed_keys(self, layer: int) -> torch.Tensor:
        if layer not in self._packed:
            self._packed[layer] = kernels.pack_panels(self.layers[layer].prompt_keys)
        return self._packed[layer]

    def _tasks(self, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        if group not in self._task_lists:
            self._task_lists[group] = decode_tasks(self._question_of, max(1, _QUERIES_PER_TASK // group))
        return self._task_lists[group]

    def _keep_prompts(self, questions: torch.Tensor) -> None:
        super()._keep_prompts(questions)
        self._packed.clear()

    def _arrange(self) -> None:
        super()._arrange()
        self._task_lists: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._addresses: Any = None
        self._addresses_keep = False
        self._prompt_lengths = torch.tensor(self._lengths)


class _RecordedLayer(SharedLayer):
    """One layer of all cohorts, whose attention a recorder may keep."""

    def __init__(self, number: int, window: int | None, cohorts: Sequence[Cohort], recorder: Recorder | None) -> None:
        super().__init__(number, window, cohorts)
        self._recorder = recorder

    def attend(self, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None) -> torch.Tensor:
        output = super().attend(query, scaling, softcap, window)
        if self._recorder is not None:
            known = [cohort.lse for cohort in self._cohorts if cohort.lse is not None]
            lse = torch.cat(known) if len(known) == len(self._cohorts) else None
            self._recorder.keep_attention(self._number, output.squeeze(1), lse)
        return output


def decode_tasks(question_of: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tasks (3, K), order (R,)) as `kernels.decode_attention` takes them, of at most so many rows each.

    >>> decode_tasks(torch.tensor([0, 1, 0, 0]), 2)[0].tolist()  # questions; where rows begin; how many they are
    [[0, 0, 1], [0, 2, 3], [2, 1, 1]]
    """
    tasks, start = [], 0
    for question, count in enumerate(question_of.bincount().tolist()):
        tasks += [(question, start + i, min(most, count - i)) for i in range(0, count, most)]
        start += count
    return torch.tensor(tasks).t().contiguous(), question_of.argsort(stable=True)
