"""What is asked of a model once its run is finished: samples, other data sets; of the unadapted one also votes.

Runs in the child process.  The request is a mapping of plain values, so that it can travel and be compared:

    {"samples": 16, "votes": 64, "synthesis": 16, "refine": {...}, "forcing": {...}, "search": {NAME: {...}, ...},
     "elsewhere": [{"role", "name", "config"}, ...]}

Everything lands in one folder inside the run's, which appears whole or not at all:
samples.jsonl, votes.jsonl, synthesis.jsonl, refined.jsonl, forced.jsonl, a file per search and per other data set,
figures.json, state.json.  What a search has done so far is kept next to it, in `asking`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spinerl.answers import Equivalence
from spinerl.comparison.forcing import forced_responses
from spinerl.comparison.plan import elsewhere_file, search_size
from spinerl.comparison.refine import Refined, refined_responses
from spinerl.comparison.search.neighbors import share_labels, together
from spinerl.comparison.search.records import Searched
from spinerl.comparison.search.runner import run_search
from spinerl.comparison.state import ASKED, ASKING, ASKING_S
from spinerl.comparison.synthesis import synthesized_responses
from spinerl.config import Config
from spinerl.data import load_data, render_all
from spinerl.engine.sampler import sample_responses
from spinerl.evaluation import begin_evaluation, evaluate
from spinerl.files import remove
from spinerl.machine import set_threads, tune_allocator
from spinerl.maths import mean_probability, response_means
from spinerl.models.loading import LoadedModel
from spinerl.observer import Observer
from spinerl.runs import RunFolder, explain_failures, write_json, write_rows
from spinerl.scoring import correctness, judge
from spinerl.steering import open_model
from spinerl.types import GoldTable, Question
from spinerl.workload import fitting, stopping

__all__ = ["ask_afterwards"]

_MOST_TOKENS = 2**26  # sampled before their texts are judged and the rest is forgotten: about a gigabyte


def ask_afterwards(run: RunFolder, after: Mapping[str, Any], observer: Observer) -> None:
    """Ask the run's final model what `after` says, and write the answers into the run folder."""
    config = run.config
    tune_allocator()
    if config.threads:
        set_threads(config.threads)
    prints: dict[str, str] = {}
    figures: dict[str, Any] = {}

    def fill(folder: Path) -> None:
        if any(after.values()):
            ask(folder)
        write_json(folder / "figures.json", figures)
        write_json(folder / "state.json", {"after": after, "fingerprints": prints})

    def ask(folder: Path) -> None:
        adapted = (run.path / "model").is_dir()
        named = config.model.model_copy(update={"name": str(run.path)} if adapted else {})
        loaded = open_model(config.model_copy(update={"model": named}))
        with Equivalence() as equivalence:
            own = _Asked(loaded, config, prints)
            saved: dict[str, list[dict[str, Any]]] = {}
            for key in ("samples", "votes"):
                if after.get(key):
                    asked = after[key] * len(own.questions)
                    observer.phase(key, asked * config.rollout.max_new_tokens, asked)
                    with _timed(figures, key):
                        saved[key], found = _sampled(own, after[key], equivalence, observer)
                    figures[key] |= found
                    write_rows(folder / f"{key}.jsonl", saved[key])
            if num := after.get("synthesis"):
                observer.phase("synthesis", len(own.questions) * config.rollout.max_new_tokens, len(own.questions))
                with _timed(figures, "synthesis"):
                    rows = _synthesized(own, saved["votes"], num, equivalence, observer)
                write_rows(folder / "synthesis.jsonl", rows)
            if refine := after.get("refine"):
                most = 2 * refine["responses"] * refine["rounds"] * len(own.questions)  # a check and a correction each
                observer.phase("verify and correct", most * config.rollout.max_new_tokens, most)
                with _timed(figures, "refined"):
                    rows = _refined(own, saved["votes"], refine, equivalence, observer)
                write_rows(folder / "refined.jsonl", rows)
            if forcing := after.get("forcing"):
                observer.phase("budget forcing", forcing["budget"] * len(own.questions))
                with _timed(figures, "forced"):
                    rows = _forced(own, forcing, equivalence, observer)
                write_rows(folder / "forced.jsonl", rows)
            for name, request in after.get("search", {}).items():
                rows, seconds = _searched(own, saved["votes"], name, request, equivalence, observer, run.path / ASKING)
                if rows:
                    write_rows(folder / f"{name}.jsonl", rows)
                    figures[name] = {ASKING_S: seconds}
            for other in after["elsewhere"]:
                there = _Asked(loaded, Config.model_validate(other["config"]), prints)
                begin_evaluation(observer, len(there.questions), there.config, other["role"])
                for note in there.notes:
                    observer.note(f"{other['name']}: {note}")
                result = evaluate(
                    loaded, there.questions, there.prompts, there.gold, there.config, equivalence, observer.tokens
                )
                write_rows(folder / elsewhere_file(other["role"], other["name"]), result.predictions)
                figures[other["name"]] = result.metrics

    with explain_failures(run.path, "spinerl compare ..."):
        run.write_folder(ASKED, fill)
        remove(run.path / ASKING)


@contextlib.contextmanager
def _timed(figures: dict[str, Any], name: str) -> Iterator[None]:
    """Note under a name how many seconds what is inside took."""
    start = time.perf_counter()
    yield
    figures.setdefault(name, {})[ASKING_S] = time.perf_counter() - start


class _Asked:
    """A data set's questions, ready to be asked of a model that is loaded already."""

    def __init__(self, loaded: LoadedModel, config: Config, prints: dict[str, str]) -> None:
        data, gold = load_data(config.data, answer_kind=config.answer.kind)
        prints[config.data.name] = self.fingerprint = data.fingerprint
        rendered = render_all(
            data.questions, loaded.tokenizer, config.prompt, kind=config.answer.kind, vision=loaded.vision
        )
        rendered, self.notes = fitting(loaded, rendered, config)
        most = config.eval.max_questions or len(rendered.questions)
        self.loaded, self.config = stopping(loaded, config), config
        self.questions: Sequence[Question] = rendered.questions[:most]
        self.prompts = rendered.prompts[:most]
        self.gold: GoldTable = gold

    def row(self, question: Question) -> dict[str, Any]:
        """A prediction row (`spinerl.scoring`) without its responses."""
        return {
            "id": question.id,
            "kind": question.answer_kind,
            "choices": list(question.choices),
            "subject": question.subject,
            "gold": self.gold.get(question.id),
        }


def _sampled(
    asked: _Asked, num: int, equivalence: Equivalence, observer: Observer
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Judged rows of `num` responses per question, with what voting and choosing by confidence need, and figures.

    The streams are those of an evaluation, so that models asked after different methods sample alike, and the first
    k of many responses are those of a model asked k times.
    """
    config = asked.config
    rows: list[dict[str, Any]] = []
    num_tokens, entropy, num_truncated = 0, 0.0, 0
    at_once = max(1, _MOST_TOKENS // (num * config.rollout.max_new_tokens))
    for start in range(0, len(asked.questions), at_once):
        questions = asked.questions[start : start + at_once]
        rollout = sample_responses(
            asked.loaded,
            questions,
            asked.prompts[start : start + at_once],
            num,
            config.rollout,
            (config.seed, "eval"),
            observer.tokens,
            certainties=True,
        )
        assert rollout.certainties is not None
        lengths = rollout.mask.sum(dim=1).tolist()
        probabilities = mean_probability(rollout.logprobs, rollout.entropies, rollout.mask).tolist()
        certainties = response_means(rollout.certainties, rollout.mask).tolist()
        truncated = (~rollout.finished_mask).tolist()
        for i, question in enumerate(questions):
            mine = slice(i * num, (i + 1) * num)
            row = {
                **asked.row(question),
                "responses": list(rollout.texts[mine]),
                "truncated": truncated[mine],
                "lengths": lengths[mine],
                "probabilities": [round(p, 6) for p in probabilities[mine]],
                "certainties": [round(c, 6) for c in certainties[mine]],
            }
            rows.append(judge(row, equivalence, config.answer, config.vote, config.seed))
        num_tokens += sum(lengths)
        entropy += float(rollout.entropies.double().sum())  # padding holds 0
        num_truncated += sum(truncated)
    return rows, {
        "response_length": num_tokens / (num * len(rows)),
        "entropy": entropy / max(1, num_tokens),
        "truncated_frac": num_truncated / (num * len(rows)),
    }


def _synthesized(
    asked: _Asked, votes: Sequence[Mapping[str, Any]], num: int, equivalence: Equivalence, observer: Observer
) -> list[dict[str, Any]]:
    """Judged rows of the response that is written after reading a question's first `num` ones.

    `num_tokens` counts those drafts too, whether or not the prompt had space for all of them.
    """
    config = asked.config
    drafts = [row["responses"][:num] for row in votes]
    found = synthesized_responses(asked.loaded, asked.questions, asked.prompts, drafts, config, observer.tokens)
    rows = []
    for question, saved, one in zip(asked.questions, votes, found, strict=True):
        row = {
            **asked.row(question),
            "responses": [one.text],
            "truncated": [one.truncated],
            "lengths": [one.num_tokens],
            "num_read": one.num_read,
            "num_tokens": sum(saved["lengths"][:num]) + one.num_tokens,
        }
        rows.append(judge(row, equivalence, config.answer, config.vote, config.seed))
    return rows


def _refined(
    asked: _Asked,
    votes: Sequence[Mapping[str, Any]],
    refine: Mapping[str, Any],
    equivalence: Equivalence,
    observer: Observer,
) -> list[dict[str, Any]]:
    """Judged rows of a question's first responses after their checks; `num_tokens` counts the first ones too."""
    config, num = asked.config, refine["responses"]
    drafts = [
        [Refined(*one) for one in zip(row["responses"][:num], row["truncated"], row["lengths"], strict=False)]
        for row in votes
    ]
    refined_responses(asked.loaded, asked.questions, asked.prompts, drafts, config, refine["rounds"], observer.tokens)
    rows = []
    for question, saved, own in zip(asked.questions, votes, drafts, strict=True):
        row = {
            **asked.row(question),
            "responses": [one.text for one in own],
            "truncated": [one.truncated for one in own],
            "lengths": [one.length for one in own],
            "num_corrections": sum(one.num_corrections for one in own),
            "num_tokens": sum(saved["lengths"][:num]) + sum(one.num_tokens for one in own),
        }
        rows.append(judge(row, equivalence, config.answer, config.vote, config.seed))
    return rows


def _searched(
    asked: _Asked,
    votes: Sequence[Mapping[str, Any]],
    name: str,
    request: Mapping[str, Any],
    equivalence: Equivalence,
    observer: Observer,
    parts: Path,
) -> tuple[list[dict[str, Any]], float]:
    """(judged rows of what a search found, its seconds); none where the questions have no labels to share."""
    config, seen = asked.config, request["seen"]
    search = Searched(
        asked.loaded,
        config,
        asked.questions,
        asked.prompts,
        [row["answers"][:seen] for row in votes],
        [row["lengths"][:seen] for row in votes],
        equivalence,
        observer.tokens,
    )
    own = {key: value for key, value in request.items() if key != "seen"}
    if name == "neighbors":
        return _neighbors(asked, search, **own)
    most = len(asked.questions) * search_size(name, request)[1]
    observer.phase(name, most * config.rollout.max_new_tokens, most)
    parts.mkdir(exist_ok=True)
    found, seconds = run_search(name, search, own, parts / f"{name}.jsonl", asked.fingerprint)
    rows = [
        judge(
            {
                **asked.row(question),
                **{key: value for key, value in asdict(one).items() if key != "figures" and value != []},
                **one.figures,
            },
            equivalence,
            config.answer,
            config.vote,
            config.seed,
        )
        for question, one in zip(asked.questions, found, strict=True)
    ]
    return rows, seconds


def _neighbors(asked: _Asked, search: Searched, num: int) -> tuple[list[dict[str, Any]], float]:
    if not share_labels(asked.questions):
        return [], 0.0
    start = time.perf_counter()
    labels = together(search, num)
    rows = []
    for i, question in enumerate(asked.questions):
        row = asked.row(question)
        kind = asked.config.answer.kind_of(question.answer_kind)
        said = {
            method: {"answer": own[i], "correct": correctness(own[i], row["gold"], kind, search.equivalence)}
            for method, own in zip(("testnuc", "lame"), labels, strict=True)
        }
        rows.append({**row, **said, "num_tokens": sum(search.lengths[i])})
    return rows, time.perf_counter() - start


def _forced(
    asked: _Asked, forcing: Mapping[str, Any], equivalence: Equivalence, observer: Observer
) -> list[dict[str, Any]]:
    config = asked.config
    found = forced_responses(
        asked.loaded, asked.questions, asked.prompts, config.rollout, **forcing, on_tokens=observer.tokens
    )
    return [
        judge(
            {**asked.row(question), "greedy": {"text": text, "truncated": truncated}, "num_tokens": num_tokens},
            equivalence,
            config.answer,
            config.vote,
            config.seed,
        )
        for question, (text, truncated, num_tokens) in zip(asked.questions, found, strict=True)
    ]
