"""The functions one imports: `import spinerl; spinerl.adapt(...)`.  The commands do the same from a terminal.

A model is a hub name, a folder, a bundled model's name, or a loaded transformers model (then its tokenizer goes with
it).  Questions are a file, a data set's name, or a list: of texts, or of dicts with the columns of a file's rows
(`question`, and if there are `id`, `choices`, `images`, `answer`).  Every other keyword is a configuration key
(docs/configuration.md): `steps=40`, `optim={"lr": 1e-5}`, or `**{"optim.lr": 1e-5}`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinerl.answers import count_vote, default_equivalence
from spinerl.config import Config, load_config, override
from spinerl.errors import InputError, RunError, short
from spinerl.plugins import register
from spinerl.report import read_run
from spinerl.runs import QUESTIONS, RunFolder
from spinerl.stats import Difference
from spinerl.types import Vote

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spinerl.evaluation import Evaluation
    from spinerl.guard.forecast import Forecast
    from spinerl.models.loading import LoadedModel

__all__ = ["Run", "adapt", "compare", "evaluate", "preflight", "vote"]

_LOG = logging.getLogger(__name__)

Questions = str | Path | Sequence[str | Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """What `adapt` did.

    `model` and `tokenizer`: the adapted model, in memory.  `metrics`: a dict per step (docs/metrics.md).
    `evaluations`: a dict per evaluation.  `before`, `after`: those of the unadapted model and of the one that the run
    ended with, with their predictions.  `labels`: a dict per question and step.  `guard`: what the guard did
    (kept_step, rule, text), {} with guard="off".  `folder`: the run folder, None if none was asked for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: Config
    metrics: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]
    labels: tuple[Mapping[str, Any], ...]
    guard: Mapping[str, Any]
    before: Evaluation
    after: Evaluation
    folder: Path | None


def adapt(
    model: str | Path | PreTrainedModel,
    questions: Questions,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: str = "spine",
    reward: str | Callable[..., Sequence[float]] | None = None,
    run: str | Path | None = None,
    callbacks: Sequence[Any] = (),
    **keys: Any,
) -> Run:
    """Adapt a model to unlabeled questions, as `spinerl adapt` does.

    Args:
        model: its name or folder, or a loaded model, which then learns in place.
        questions: a file, a data set's name, or a list of texts or dicts.
        tokenizer: the loaded model's.
        method: a row of docs/configuration.md, "Methods".
        reward: in place of the method's: a name, or a function of a question's vote that returns a number per response.
            What else it names among its arguments it is given: `texts`, `question`, `num_tokens`, `finished`,
            `entropies`, `logprobs`, `mask`, `step`, `certainties`, `embeddings`, ... (docs/extending.md).
        run: the run folder to write; None: a temporary one.
        callbacks: objects with any of the methods `on_step(metrics)`, `on_evaluation(metrics)`,
            `on_checkpoint(folder)`.
        keys: configuration keys.

    Raises InputError for what cannot be right, before anything is written; RunError while running.  The number of torch
    threads is set while this runs, and is afterwards what it was.

    >>> import spinerl
    >>> run = spinerl.adapt("tiny-reasoner", ["What is 2 + 3?", "What is 4 + 4?"], steps=1, guard="off")
    >>> len(run.metrics), [row["step"] for row in run.evaluations], run.folder
    (1, [0, 1], None)
    """
    from spinerl.data import resolve
    from spinerl.train import adapt as run_adapt
    from spinerl.workload import open_workload

    if callable(reward):
        reward = register(reward)
    if reward is not None:
        keys["reward"] = reward
    with tempfile.TemporaryDirectory() as temporary, _own_threads():
        folder = Path(temporary) / "run" if run is None else Path(run)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"run={folder} is not empty; continue a run with `spinerl adapt --resume`, or name another"
            )
        with _written(questions, folder) as data:
            config = resolve(_config(model, {**data, "method": method, **keys, "run": str(folder)}))
            observer = _Callbacks(callbacks)
            work = open_workload(config, observer, _given(model, tokenizer, config))
            made = run_adapt(config, observer, work=work)
        data = read_run(made.path)
        final = data.final_eval  # the last evaluation, or that of the weights which the guard kept
        if final is None:
            raise RunError(f"{made.path / 'eval.jsonl'} was damaged while the run was under way")
        first = data.evals[0]
        return Run(
            work.loaded.model,
            work.loaded.tokenizer,
            made.config,
            data.metrics,
            data.evals,
            data.labels,
            data.guard,
            _evaluation(made, first),
            _evaluation(made, final),
            None if run is None else folder,
        )


def evaluate(
    model: str | Path | PreTrainedModel,
    questions: Questions,
    *,
    samples: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **keys: Any,
) -> Evaluation:
    """Answer questions greedily, and `samples` times at the sampling temperature, as `spinerl eval` does.

    Returns: an `Evaluation`: `metrics` (docs/metrics.md, `eval/...`: accuracies where there are gold answers, with
    intervals), `predictions` (a dict per question with its texts, answers and, with gold, whether they are right).
    Raises InputError.

    >>> import spinerl
    >>> found = spinerl.evaluate("tiny-reasoner", [{"question": "What is 2 + 3?", "answer": "5"}])
    >>> found.metrics["num_gold"], found.predictions[0]["gold"]
    (1, '5')
    """
    from spinerl.data import resolve
    from spinerl.evaluation import evaluate_model

    with (
        tempfile.TemporaryDirectory() as temporary,
        _written(questions, Path(temporary)) as data,
        _own_threads(),
    ):
        config = resolve(_config(model, {**data, "method": "none", "eval.samples": samples, **keys}))
        return evaluate_model(config, given=_given(model, tokenizer, config))


def compare(before: Evaluation, after: Evaluation, *, confidence: float = 0.95) -> dict[str, Difference]:
    """How much better `after` is than `before` on the same questions, paired question by question, by figure.

    Figures are "greedy Pass@1", and of the samples "avg@k" and "maj@k"; each a `Difference` with interval and p-value.
    Raises InputError where no question with a gold answer is in both.

    >>> import spinerl
    >>> row = {"question": "What is 2 + 3?", "answer": "5"}
    >>> found = spinerl.evaluate("tiny-reasoner", [row])
    >>> spinerl.compare(found, found)["greedy Pass@1"].difference
    0.0
    """
    from spinerl.scoring import compare as paired

    return paired(before.predictions, after.predictions, confidence)


def preflight(
    model: str | Path | PreTrainedModel,
    questions: Questions,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **keys: Any,
) -> Forecast:
    """Before adapting: from one sampling pass, how many labels would be right, as `spinerl preflight` says it.

    Returns: a `Forecast`: `verdict` ("go", "caution" or "no-go"), `reason`, `label_accuracy` with `_low` and `_high`.
    Gold answers are not looked at.  Raises InputError.

    >>> import spinerl
    >>> spinerl.preflight("tiny-reasoner", ["What is 2 + 3?", "What is 4 + 4?"]).verdict in ("go", "caution", "no-go")
    True
    """
    from spinerl.data import resolve
    from spinerl.guard.preflight import preflight as run_preflight

    with (
        tempfile.TemporaryDirectory() as temporary,
        _written(questions, Path(temporary)) as data,
        _own_threads(),
    ):
        config = _config(model, {**data, **keys})
        return run_preflight(config, given=_given(model, tokenizer, resolve(config)))[0]


def vote(
    texts: Sequence[str], kind: str = "auto", *, choices: Sequence[str] = (), explain: bool = False, **options: Any
) -> Vote:
    """Read the answer of each text, sort equal answers together, and vote; no model is needed.

    Args:
        texts: responses to one question.
        kind: how answers are read: auto, number, math, choice or text (docs/answers.md).
        choices: the options' texts, for kind "choice".
        explain: also say how each text was read: `readings`, one per text, each with its rule, cue, the text read and
            the candidates that were refused (`reading.explain()` is a line of it).
        options: of `spinerl.answers.vote`: tie, min_majority_frac, min_margin, weights, seed.

    Raises InputError for an unknown kind or option.

    >>> import spinerl
    >>> found = spinerl.vote([r"so \\\\boxed{1/2}", "The answer is 0.5.", "7"], kind="math")
    >>> found.classes, found.majority_frac > 0.6
    ((0, 0, 1), True)
    >>> spinerl.vote(["The answer is 8. The solution is complete."], kind="number", explain=True).readings[0].cue
    'answer is'
    """
    cut = [False] * len(texts)
    return count_vote(list(texts), cut, kind, default_equivalence(), choices=tuple(choices), explain=explain, **options)


class _Callbacks:
    """The observer that calls a user's callbacks."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        names = ("on_step", "on_evaluation", "on_checkpoint")
        if isinstance(callbacks, str | Mapping) or not isinstance(callbacks, Iterable):
            raise InputError(f"callbacks={short(callbacks)}: give a list of objects")
        callbacks = tuple(callbacks)
        for one in callbacks:
            if not any(callable(getattr(one, name, None)) for name in names):
                raise InputError(f"callback {short(one)} has none of the methods {', '.join(names)}")
            if isinstance(one, type):
                raise InputError(f"callback {short(one)} is a class; give an object of it")
            wrong = next((name for name in names if hasattr(one, name) and not callable(getattr(one, name))), None)
            if wrong is not None:
                raise InputError(f"callback {short(one)}: its {wrong} is {short(getattr(one, wrong))}, not a method")
        self._callbacks = callbacks

    def _tell(self, name: str, *given: Any) -> None:
        for one in self._callbacks:
            method = getattr(one, name, None)
            if method is not None:
                method(*given)

    def phase(self, name: str, total_tokens: int, num_responses: int = 0) -> None: ...

    def tokens(self, count: int, finished: int = 0) -> None: ...

    def look(self, row: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None:
        _LOG.info("%s", text)

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:  # noqa: ARG002 - the observers' common shape
        self._tell("on_step", dict(metrics))

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        self._tell("on_evaluation", dict(metrics))

    def checkpoint(self, folder: Path) -> None:
        self._tell("on_checkpoint", folder)


@contextmanager
def _own_threads() -> Iterator[None]:
    """Inside, torch may be given another number of threads; afterwards it has what it had."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _config(model: Any, keys: Mapping[str, Any]) -> Config:
    given = {"model": _name(model), **keys}
    try:
        overrides = [override(key, value) for key, value in given.items()]
    except (TypeError, ValueError) as error:
        raise InputError(f"configuration keys must be plain values: {error}") from None
    return load_config(overrides=overrides)


def _name(model: Any) -> str:
    """A loaded model's name is the folder or hub name that it came from, or its class."""
    if isinstance(model, str | Path):
        return str(model)
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def _given(model: Any, tokenizer: Any, config: Config) -> LoadedModel | None:
    """The record of a model in memory; None for one that is to be read."""
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise InputError(f"tokenizer= goes with a loaded model; {model} has its own")
        return None
    if tokenizer is None:
        raise InputError(f"a loaded model ({type(model).__name__}) needs its tokenizer: tokenizer=...")
    from spinerl.models.loading import wrap_model

    return wrap_model(model, tokenizer, config.model)


@contextmanager
def _written(questions: Questions, folder: Path) -> Iterator[dict[str, str]]:
    """The keys that name the questions: as given, or a file in the folder that a list is written to.

    What was written is taken back if what follows is refused.
    """
    if isinstance(questions, str | Path):
        yield {"data": str(questions)}
        return
    rows = [{"question": row} if isinstance(row, str) else row for row in questions]
    if not rows:
        raise InputError("questions is an empty list; give at least one text or dict")
    wrong = next((row for row in rows if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise InputError(f"questions must be texts or dicts; one is {wrong!r}")
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    except (TypeError, ValueError) as error:
        raise InputError(f"questions must be texts or dicts of plain values: {error}") from None
    file, new = folder / QUESTIONS, not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")
    pictured = any(row.get("images") for row in rows)
    try:
        yield {"data": str(file), **({"data.image_folder": str(Path.cwd())} if pictured else {})}
    except InputError:
        if list(folder.iterdir()) == [file]:
            file.unlink()
            if new:
                folder.rmdir()
        raise


def _evaluation(made: RunFolder, row: Mapping[str, Any]) -> Evaluation:
    from spinerl.evaluation import Evaluation

    return Evaluation(dict(row), tuple(made.predictions(row["step"])))
