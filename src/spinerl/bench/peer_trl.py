"""TRL's GRPOTrainer doing the same step on the same model.  The only file that imports trl.

Everything goes through its public interface: arguments, a reward function, a callback that keeps the time.
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spinerl.errors import MissingExtraError

__all__ = ["TrlJob", "fastest_rows", "possible_rows", "require_trl", "run_steps"]

Reward = Callable[[Sequence[str]], list[float]]


@dataclass(frozen=True)
class TrlJob:
    """What TRL is to do: the model's folder, the questions' texts, and the figures both sides share."""

    folder: str
    texts: tuple[str, ...]
    group_size: int
    new_tokens: int
    lr: float
    reward: Reward  # completions, question-major, to rewards
    device: str
    bfloat16: bool

    @property
    def num_rows(self) -> int:
        """Responses of a step."""
        return len(self.texts) * self.group_size


def require_trl() -> None:
    """Raises MissingExtraError where trl is not installed; importing it takes seconds, so that waits."""
    if importlib.util.find_spec("trl") is None:
        raise MissingExtraError("trl is not installed: pip install 'spinerl[bench]'")


def possible_rows(num_rows: int) -> list[int]:
    """Rows per forward and backward worth trying, most first: all, a quarter, and so on, each dividing the step.

    >>> possible_rows(128)
    [128, 32, 8]
    """
    return [num_rows // n for n in (1, 4, 16) if num_rows % n == 0]


def run_steps(
    job: TrlJob,
    num_steps: int,
    rows: int,
    *,
    gradient_checkpointing: bool = False,
    random_rollout: bool = False,
    after_step: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Seconds of each of at most `num_steps` training steps.

    A step samples `job.num_rows` responses and makes one optimizer update of them, `rows` at a time.

    Args:
        random_rollout: random tokens in place of sampled ones, to time only the update.
        after_step: called after each step, outside of its time; True ends the training.
    """
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer's, about its own arguments
        trainer = GRPOTrainer(
            model=job.folder,
            reward_funcs=_as_trl_reward(job.reward),
            args=GRPOConfig(
                output_dir=scratch,
                model_init_kwargs={"dtype": "bfloat16" if job.bfloat16 else "float32"},
                use_cpu=job.device == "cpu",
                bf16=job.bfloat16,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=job.num_rows // rows,
                num_generations=job.group_size,
                max_completion_length=job.new_tokens,
                temperature=1.0,
                beta=0.0,
                learning_rate=job.lr,
                lr_scheduler_type="constant",
                gradient_checkpointing=gradient_checkpointing,
                max_steps=num_steps,
                shuffle_dataset=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": text} for text in job.texts]),
            callbacks=[_stopwatch(seconds, after_step)],
            rollout_func=_random_rollout(job) if random_rollout else None,
        )
        trainer.train()
    return seconds


def fastest_rows(job: TrlJob) -> tuple[int, dict[int, float]]:
    """(the rows per forward and backward with the fastest update, seconds of each tried).

    Only the update depends on it: responses are always sampled all at once.
    """
    tried = {rows: run_steps(job, 1, rows, random_rollout=True)[0] for rows in possible_rows(job.num_rows)}
    return min(tried, key=lambda rows: tried[rows]), tried


def _as_trl_reward(reward: Reward) -> Callable[..., list[float | None]]:
    def vote_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        assert len(prompts) == len(completions)
        return list(reward(completions))

    return vote_reward


def _stopwatch(seconds: list[float], after_step: Callable[[], bool]) -> Any:
    """A callback that appends the time from the beginning to the end of each step, generation included."""
    import torch
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> Any:  # noqa: ARG002
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.started)
            control.should_training_stop |= after_step()
            return control

    return Stopwatch()


def _random_rollout(job: TrlJob) -> Callable[..., dict[str, Any]]:
    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        rng = random.Random(0)
        vocabulary = range(2, trainer.model.config.vocab_size)
        return {
            "prompt_ids": trainer.processing_class(text=prompts)["input_ids"],
            "completion_ids": [rng.choices(vocabulary, k=job.new_tokens) for _ in prompts],
            "logprobs": None,
        }

    return rollout
