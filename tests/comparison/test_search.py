"""Baselines that sample again: their formulas by loops in float64, and what they do on the bundled model."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from random import Random

import pytest
import torch

from spinerl.answers import Equivalence, extract_answer
from spinerl.comparison.baselines import baselines
from spinerl.comparison.collect import collect
from spinerl.comparison.dry_run import dry_compare
from spinerl.comparison.plan import plan
from spinerl.comparison.search import carbon, latents, runner
from spinerl.comparison.search.carbon import calibrated, fit_calibration
from spinerl.comparison.search.chain import acceptance, chained
from spinerl.comparison.search.deepening import budgets_of, deepened
from spinerl.comparison.search.latents import blended, sought
from spinerl.comparison.search.neighbors import share_labels
from spinerl.comparison.search.records import Found, Searched, likelihood, vote_share
from spinerl.comparison.search.runner import run_search
from spinerl.comparison.state import ASKED
from spinerl.config import load_config
from spinerl.engine.rollouts import rollout_of
from spinerl.engine.sampler import Calibration, greedy_responses, sample_responses
from spinerl.engine.update import predicting_states, score
from spinerl.errors import InputError
from spinerl.runs import write_rows
from spinerl.terminal import PlainConsole
from spinerl.types import Batch, Question
from tests.commands import exit_code
from tests.comparison.synthetic import made_up, sampled, write_task

CONFIG = load_config(overrides=["data=tiny/shift-a", "data.max_questions=3", "rollout.max_new_tokens=40"])
ANSWERS = (("5", "5", "6", None), ("40", "1", "2", "3"), ("13", "13", "13", "13"))


class Counted:
    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, tokens: int, finished: int = 0) -> None:  # noqa: ARG002
        self.tokens += tokens


@pytest.fixture(scope="module")
def search(asked):
    with Equivalence() as equivalence:
        lengths = [[10, 11, 12, 13]] * 3
        yield Searched(asked[0], CONFIG, asked[1], asked[2], ANSWERS, lengths, equivalence, Counted())


def counting(search):
    """The same search with a count of its own."""
    return dataclasses.replace(search, on_tokens=Counted())


def only(search, i):
    """The same search of one question."""
    own = {key: getattr(search, key)[i : i + 1] for key in ("questions", "prompts", "answers", "lengths")}
    return dataclasses.replace(search, **own)


# ID-sampling


def test_budgets_grow_to_the_limit():
    assert budgets_of(10, 1.5, 40) == [10, 15, 22, 33, 40]
    assert budgets_of(40, 2.0, 40) == budgets_of(99, 2.0, 40) == [40]
    assert budgets_of(1, 1.1, 3) == [1, 2, 3]


def test_a_cue_stands_where_a_budget_ends(search):
    own = counting(search)
    found = deepened(own, responses=2, budget=8, growth=2.0, cue=" Wait")
    assert sum(one.num_tokens for one in found) == own.on_tokens.tokens
    for one in found:
        assert len(one.responses) == len(one.truncated) == len(one.lengths) == 2
        assert all(text.count(" Wait") == 3 for text in one.responses), "after 8, 16 and 32 tokens"
        assert all(length <= 40 for length in one.lengths)
        assert one.num_tokens >= 2 * 8, "what the model wrote, not the cues"
        assert one.num_tokens < sum(one.lengths)


def test_one_budget_is_plain_sampling(search):
    found = deepened(search, responses=1, budget=40, growth=2.0, cue=" Wait")
    seed = (CONFIG.seed, "deepening", 0, 0)
    plain = sample_responses(search.loaded, search.questions, search.prompts, 1, CONFIG.rollout, seed)
    assert [one.responses[0] for one in found] == list(plain.texts)
    assert [one.num_tokens for one in found] == plain.mask.sum(1).tolist()


# QAlign


def test_the_chain_keeps_its_law():
    """Detailed balance in a world of two tokens and at most three of them: pi(y) p(y -> y') is symmetric."""
    stop = {"": 0.3, "a": 0.6, "b": 0.2, "aa": 0.5, "ab": 0.9, "ba": 0.4, "bb": 0.1}
    nxt = {"": 0.7, "a": 0.2, "b": 0.55, "aa": 0.35, "ab": 0.8, "ba": 0.15, "bb": 0.5}  # P(a | not stopped)

    def p(text, start=0):  # P(text from `start` on | its first `start` letters), "." being the end
        value = 1.0
        for t in range(start, len(text)):
            before = text[:t]
            going = 1.0 if t == 3 else 1 - stop[before]
            if text[t] == ".":
                value *= 1.0 if t == 3 else stop[before]
            else:
                value *= going * (nxt[before] if text[t] == "a" else 1 - nxt[before])
        return value

    texts = ["".join(letters) + "." for n in range(4) for letters in itertools.product("ab", repeat=n)]
    assert sum(map(p, texts)) == pytest.approx(1.0)
    reward = {text: Random(text).random() for text in texts}
    beta = 0.3
    law = {text: p(text) * math.exp(reward[text] / beta) for text in texts}
    move = {}
    for old, new in itertools.permutations(texts, 2):
        proposed = sum(p(new, place) / len(old) for place in range(len(old)) if new[:place] == old[:place])
        move[old, new] = proposed * acceptance(reward[new], reward[old], len(new), len(old), beta)
    for old, new in move:
        assert law[old] * move[old, new] == pytest.approx(law[new] * move[new, old], rel=1e-12)


def test_a_chain_on_the_bundled_model(search):
    own = counting(search)
    found = chained(own, steps=4, beta=0.1)
    assert sum(one.num_tokens for one in found) == own.on_tokens.tokens
    first = sample_responses(search.loaded, search.questions, search.prompts, 1, CONFIG.rollout, (0, "qalign", 0))
    for i, one in enumerate(found):
        assert len(one.responses) == len(one.lengths) == len(one.truncated) == 4
        assert one.responses[0] == first.texts[i]
        assert one.figures["num_accepted"] >= len(set(one.responses)) - 1
        assert chained(only(search, i), steps=4, beta=0.1) == [one], "questions do not depend on each other"


def test_a_rejected_proposal_leaves_the_state(asked, search):
    """A sampler that writes ever longer ends, all equally likely: accepted with |y| / |y'|, drawn again by hand."""

    class Script:
        def __init__(self):
            self.calls = []

        def respond(self, loaded, questions, prompts, num, rollout, seed, limits, on_tokens):  # noqa: ARG002
            new = [7 + seed[2]] * (3 + 2 * seed[2])
            self.calls.append((len(prompts[0]) - len(search.prompts[0]), limits[0]))
            return rollout_of(questions, prompts, num, [new], [True], loaded.tokenizer, 0)

    from spinerl.seeding import seed_of

    script = Script()
    scripted = dataclasses.replace(only(search, 0), loaded=dataclasses.replace(asked[0], sampler=script))
    (found,) = chained(scripted, steps=6, beta=0.1)
    state, accepted = [7] * 3, 0
    lengths, calls = [3], [(0, 40)]
    for step in range(1, 6):
        draw = Random(seed_of(CONFIG.seed, "qalign", step, search.questions[0].id))
        place = int(draw.random() * len(state))
        calls.append((place, 40 - place))
        proposal = state[:place] + [7 + step] * (3 + 2 * step)
        if draw.random() < min(1.0, len(state) / len(proposal)):
            state, accepted = proposal, accepted + 1
        lengths.append(len(state))
    assert (found.lengths, script.calls, found.figures["num_accepted"]) == (lengths, calls, accepted)
    assert 0 < accepted < 5, "some are rejected"
    assert found.num_tokens == sum(3 + 2 * step for step in range(6))


# CarBoN


def test_a_calibration_by_loops():
    """Adam by hand on a linear head, in float64."""
    generator = torch.Generator().manual_seed(0)
    weight, states = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (4, 3)))
    tokens, temperature, lr, decay = torch.tensor([1, 4, 4, 0]), 0.7, 0.05, 0.1
    fit = fit_calibration(lambda own: own @ weight.T, states, tokens, temperature, steps=3, lr=lr, decay=decay)
    values = [0.0, 0.0, 0.0, math.log(temperature)]
    moments = [[0.0] * 4, [0.0] * 4]
    for step in range(1, 4):
        grads, scale = [2 * decay * d for d in values[:3]] + [0.0], math.exp(-values[3])
        for n in range(4):
            raw = [sum(weight[v][k] * (states[n][k] + values[k]) for k in range(3)).item() for v in range(5)]
            top = max(z * scale for z in raw)
            total = sum(math.exp(z * scale - top) for z in raw)
            for v in range(5):
                change = (math.exp(raw[v] * scale - top) / total - (v == int(tokens[n]))) / 4
                for k in range(3):
                    grads[k] += change * scale * weight[v][k].item()
                grads[3] -= change * scale * raw[v]
        for k, grad in enumerate(grads):
            moments[0][k] = 0.9 * moments[0][k] + 0.1 * grad
            moments[1][k] = 0.999 * moments[1][k] + 0.001 * grad * grad
            mean, spread = moments[0][k] / (1 - 0.9**step), moments[1][k] / (1 - 0.999**step)
            values[k] -= lr * mean / (math.sqrt(spread) + 1e-8)
    assert fit.shift.tolist() == pytest.approx(values[:3], rel=1e-9)
    assert fit.temperature == pytest.approx(math.exp(values[3]), rel=1e-9)


def test_calibrated_logits_are_sampled(search):
    """Zero bias changes nothing; figures are of (z + b) s / T, as a pass over the finished text gives."""
    asked = (search.loaded, search.questions, search.prompts, 2, CONFIG.rollout, ("c",))
    vocabulary = search.loaded.vocab_size
    plain = sample_responses(*asked)
    same = sample_responses(*asked, calibration=Calibration(torch.zeros(3, vocabulary), torch.ones(3)))
    assert same.texts == plain.texts
    bias = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([1.0, 1.5, 0.5])
    moved = sample_responses(*asked, calibration=Calibration(bias, scale))
    prompts = tuple(prompt for prompt in moved.prompts for _ in range(2))
    batch = Batch(prompts, moved.tokens, moved.mask, 1.0)
    states, rows, columns = predicting_states(search.loaded, batch, batch.mask, CONFIG.optim)
    logits = states.double() @ search.loaded.model.get_output_embeddings().weight.double().T
    changed = (logits + bias.double()[rows // 2]) * scale.double()[rows // 2].unsqueeze(1) / CONFIG.rollout.temperature
    wanted = changed.log_softmax(-1).gather(1, moved.tokens[rows, columns].unsqueeze(1)).squeeze(1)
    assert torch.allclose(moved.logprobs[rows, columns].double(), wanted, atol=2e-4)


def test_calibration_needs_the_native_sampler(search):
    other = dataclasses.replace(search.loaded, sampler=object())
    calibration = Calibration(torch.zeros(3, 5), torch.ones(3))
    with pytest.raises(InputError, match="native"):
        sample_responses(other, search.questions, search.prompts, 1, CONFIG.rollout, ("c",), calibration=calibration)


def test_the_second_half_is_calibrated_and_judged_alike(search):
    own = counting(search)
    found = calibrated(own, responses=4, keep=1, steps=5, lr=0.02, decay=0.01)
    first = sample_responses(search.loaded, search.questions, search.prompts, 2, CONFIG.rollout, (0, "eval"))
    assert own.on_tokens.tokens == sum(one.num_tokens for one in found)
    for i, one in enumerate(found):
        assert one.responses[:2] == list(first.texts[2 * i : 2 * i + 2]), "those that were saved"
        assert len(one.probabilities) == len(one.lengths) == 4
        assert one.num_tokens == sum(one.lengths)
        assert one.figures["temperature"] < CONFIG.rollout.temperature, "the likeliest response is sharpened"
    (single,) = calibrated(only(search, 1), responses=4, keep=1, steps=5, lr=0.02, decay=0.01)
    assert single.responses == found[1].responses
    # the score of all is the unadapted model's, at the rollout's temperature
    tokens = search.loaded.tokenizer(found[0].responses[0], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tokens])
    batch = Batch((search.prompts[0],), ids, torch.ones_like(ids, dtype=torch.bool), CONFIG.rollout.temperature)
    logprobs, _ = score(search.loaded, batch, batch.mask, CONFIG.optim)
    num = first.mask[0].sum() - first.finished_mask[0].long()
    if ids.shape[1] == num:  # the text is read into the same tokens
        assert likelihood(logprobs[0].tolist()) == pytest.approx(likelihood(first.logprobs[0, :num].tolist()), rel=1e-3)


def test_a_head_that_is_not_linear_is_refused(search, monkeypatch):
    monkeypatch.setattr(carbon, "logits", lambda _, states: torch.tanh(states))
    with pytest.raises(InputError, match=r"carbon\.responses=0"):
        carbon._bias(search, torch.ones(3, 4))


# LatentSeek, LatentEvolve


def test_shares_of_saved_responses(search):
    # of 5, 5, 6 and none
    said = {"So \\boxed{5}": 0.5, "\\boxed{6}": 0.25, "\\boxed{7}": 0.0, "who knows": 0.0}
    assert {text: vote_share(search, 0, text, False) for text in said} == said
    assert vote_share(search, 0, "\\boxed{5}", True) == 0.0, "cut off: it abstains"


def test_states_of_similar_questions_are_blended_in():
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    past = [
        (
            torch.randn(4, generator=generator, dtype=torch.float64),
            torch.randn(2 + j, 4, generator=generator, dtype=torch.float64),
        )
        for j in range(5)
    ]
    cosines = []
    for key, _ in past:
        dot = sum(a * b for a, b in zip(key.tolist(), own[0].tolist(), strict=True))
        cosines.append(dot / math.sqrt(sum(a * a for a in key.tolist()) * sum(b * b for b in own[0].tolist())))
    near = sorted(range(5), key=lambda j: -cosines[j])[:3]
    total = sum(math.exp(cosines[j]) for j in near)
    found = blended(own, past)
    for t in range(3):
        for k in range(4):
            mixed = 0.0
            for j in near:
                theirs = past[j][1][t][k] if t < len(past[j][1]) else own[t][k]
                mixed += math.exp(cosines[j]) / total * theirs.item()
            assert found[t][k].item() == pytest.approx(0.7 * own[t][k].item() + 0.3 * mixed, rel=1e-9)


def test_the_first_move_goes_down_the_gradient(search, monkeypatch):
    """Adam's first step is lr g / |g|, g of - R sum log softmax(W z)[y]: away from tokens whose answer few gave."""
    one = only(search, 1)
    weight = search.loaded.model.get_output_embeddings().weight.detach().double()
    start = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(2))
    moved = {}

    def decoded(_search, states, spent):  # noqa: ARG001
        moved.update(states)
        return {i: latents._Answer("", False, 0, -1.0, own) for i, own in states.items()}

    monkeypatch.setattr(latents, "_decoded", decoded)
    current = {0: latents._Answer("x", False, 1, -0.75, start)}
    best = latents._search(one, {0: start}, current, 1, 0.01, [0])
    assert best[0].text == "x", "a worse reward does not replace it"
    for t in range(2):
        z = start[t].double()
        logits = [sum(w * x for w, x in zip(row, z.tolist(), strict=True)) for row in weight.tolist()]
        top = max(logits)
        p = [math.exp(value - top) for value in logits]
        p = [value / sum(p) for value in p]
        y = logits.index(top)
        for k in range(0, len(z), 16):
            grad = 0.75 * sum(((v == y) - p[v]) * weight[v, k].item() for v in range(len(p)))
            if abs(grad) > 1e-4:
                wanted = z[k].item() - 0.01 * math.copysign(1.0, grad)
                assert moved[0][t, k].item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("evolve", [False, True])
def test_states_are_sought_on_the_bundled_model(search, evolve):
    own = counting(search)
    found = sought(own, rounds=2, fraction=0.5, most=8, lr=0.5, evolve=evolve)
    greedy = greedy_responses(search.loaded, search.questions, search.prompts, CONFIG.rollout)
    assert sum(one.num_tokens for one in found) <= own.on_tokens.tokens + sum(map(sum, search.lengths))
    for i, one in enumerate(found):
        assert len(one.responses) == 1
        assert one.figures["reward"] >= vote_share(search, i, greedy.texts[i], not greedy.finished_mask[i]) - 1
        assert one.figures["changed"] == (one.responses[0] != greedy.texts[i])
        assert one.num_tokens >= 46 + int(greedy.mask[i].sum())
    still = sought(search, rounds=2, fraction=0.5, most=8, lr=1e-9, evolve=evolve)
    assert [one.responses[0] for one in still] == list(greedy.texts), "states that hardly move say the same"


def test_a_question_all_agree_on_is_not_sought(search):
    greedy = greedy_responses(search.loaded, search.questions, search.prompts, CONFIG.rollout)
    said = extract_answer(greedy.texts[0], "number")
    own = dataclasses.replace(only(search, 0), answers=[(said, said)])
    (found,) = sought(own, rounds=3, fraction=0.5, most=8, lr=5.0)
    assert found.responses == [greedy.texts[0]]
    assert found.num_tokens == 46 + int(greedy.mask[0].sum()), "no round"


# TestNUC and LAME


def test_which_questions_share_labels():
    def ask(kind, *choices, letters=""):
        return Question("q", "?", answer_kind=kind, choices=choices, letters=letters)

    assert share_labels([ask("yesno"), ask("yesno")])
    assert share_labels([ask("choice", "spam", "ham")] * 2)
    assert not share_labels([ask("choice", "spam", "ham"), ask("choice", "ham", "spam")])
    assert not share_labels([ask("choice", "spam", "ham", letters="BA")] * 2)
    assert not share_labels([ask("number"), ask("number")])
    assert not share_labels([])


# How they run


def test_an_interrupted_search_goes_on(search, tmp_path, monkeypatch):
    calls = []

    def slow(own, steps):
        calls.append([question.id for question in own.questions])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [Found([question.id], [False], [1], steps) for question in own.questions]

    monkeypatch.setattr(runner, "_AT_ONCE", 2)
    monkeypatch.setattr(runner, "SEARCHES", {"qalign": slow})
    file, ids = tmp_path / "qalign.jsonl", [question.id for question in search.questions]
    with pytest.raises(KeyboardInterrupt):
        run_search("qalign", search, {"steps": 3}, file, "print")
    found, seconds = run_search("qalign", search, {"steps": 3}, file, "print")
    assert calls == [ids[:2], ids[2:], ids[2:]], "the first part is not asked again"
    assert [one.responses for one in found] == [[id_] for id_ in ids]
    assert seconds > 0
    assert run_search("qalign", search, {"steps": 3}, file, "print") == (found, seconds)
    for request, questions in (({"steps": 4}, "print"), ({"steps": 4}, "other")):
        del calls[1:]
        calls += [[]]
        run_search("qalign", search, request, file, questions)
        assert calls[2:] == [ids[:2], ids[2:]], "another request, or other questions, begin again"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:20]]) + "\n")
    del calls[1:]
    calls += [[]]
    run_search("qalign", search, {"steps": 4}, file, "other")
    assert calls[2:] == [ids[2:]], "a damaged part is searched again, and what follows it"


def test_only_on_request_and_without_images(capsys):
    asked = ["deepening.responses=2", "qalign.steps=3", "carbon.responses=4", "latents.rounds=5", "latents.evolve=6",
             "neighbors=7", "samples=8"]  # fmt: skip
    assert "search" not in plan(["methods=none"]).tasks[0].after
    assert "search" not in plan(["methods=none", *asked, "data=tiny-vqa/shift-a"]).tasks[0].after
    first, second = plan(["methods=none", "seeds=0,1", *asked]).tasks
    assert list(first.after["search"]) == ["deepening", "qalign", "carbon", "latentseek", "latentevolve", "neighbors"]
    assert first.after["search"]["latentevolve"] == {"rounds": 6, "fraction": 0.1, "most": 300, "lr": 0.03, "seen": 8}
    assert first.after["search"]["neighbors"] == {"num": 7, "seen": 8}
    assert "search" not in second.after
    for wrong, says in ((["carbon.responses=1"], "2 or more"), (["latents.rounds=1", "samples=0"], "samples")):
        with pytest.raises(InputError, match=says):
            plan(["methods=none", *wrong])
    dry_compare(["methods=none", *asked, "votes=8", "forcing.budget=0", "unseen=none", "original=none"], PlainConsole())
    said = " ".join(capsys.readouterr().out.split())
    assert "2 with growing budgets, a chain of 3, 4, half of them calibrated, latentseek of 5 rounds" in said
    # of 256 questions: greedy, 8 votes, a synthesis, 2 + 3 + 4, then 5 and 6 rounds and what they begin with
    assert f"{256 * (1 + 8 + 1 + 9 + 6 + 8):,}" in said


def test_their_rows_in_the_table(tmp_path):
    keys = ["seeds=0", "unseen=none", "original=none", "deepening.responses=3", "qalign.steps=3", "carbon.responses=2",
            "latents.rounds=1", "neighbors=1"]  # fmt: skip
    made = made_up(tmp_path, *keys)
    task = made.task("none", "tiny/shift-a", 0)
    votes = [[0, 0, 0, 1], [1, 0, 0, 0]]
    write_task(task, [[True, False]], classes=votes)
    asked = task.folder / ASKED
    for name, extra in (("deepening", {}), ("qalign", {"num_accepted": 1})):
        write_rows(asked / f"{name}.jsonl", [
            sampled(i, classes, [9] * 3) | {"num_tokens": 20 + i, "correct": True} | extra
            for i, classes in enumerate([[0, 0, 1], [1, 1, 0]])
        ])  # fmt: skip
    write_rows(asked / "carbon.jsonl", [
        sampled(i, classes, [9] * 2) | {"num_tokens": 18, "correct": True, "temperature": 0.5}
        for i, classes in enumerate([[1, 0], [1, 0]])
    ])  # fmt: skip
    write_rows(asked / "latentseek.jsonl", [
        sampled(i, [i], [9]) | {"num_tokens": 70, "correct": i == 0, "changed": i} for i in range(2)
    ])  # fmt: skip
    write_rows(asked / "neighbors.jsonl", [
        {"id": f"q{i}", "num_tokens": 40, "testnuc": {"answer": "0", "correct": True},
         "lame": {"answer": "0", "correct": i == 0}} for i in range(2)
    ])  # fmt: skip
    (asked / "figures.json").write_text(
        json.dumps({"votes": {"time/asking_s": 4.0}, "latentseek": {"time/asking_s": 2.0}})
    )
    (none,) = collect(made, [task])["tiny/shift-a"]
    rows = {one.name: one for one in baselines(none, 4)}
    right = {name: rows[name].right[0] for name in rows}
    assert right["majority of 3, deepened"] == right["chain of 3"] == {"q0": 1.0, "q1": 0.0}
    assert right["best of 2, calibrated"] == {"q0": 1.0, "q1": 1.0}, "the second is likelier"
    assert right["latents sought"] == right["neighbors' labels"] == {"q0": 1.0, "q1": 0.0}
    assert right["neighbors' votes"] == {"q0": 1.0, "q1": 1.0}
    assert rows["chain of 3"].note == "half of each written again, 50% accepted, then votes (QAlign)"
    assert rows["latents sought"].note == "first states learned, 50% of responses changed (LatentSeek)"
    assert rows["majority of 3, deepened"].tokens == {0: 20.5}
    assert rows["latents sought"].seconds == {0: 6.0}, "its own, and the four votes it reads"
    assert "latents evolved" not in rows


@pytest.mark.slow
def test_all_of_them_by_the_command(tmp_path, capsys):
    data = tmp_path / "q.jsonl"
    rows = [{"id": str(i), "question": f"Is {i} + 1 = 3?", "answer": "yes" if i == 2 else "no"} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [f"data={data}", "methods=none", "answer.kind=yesno", "rollout.max_new_tokens=12", "samples=2", "votes=2",
            "forcing.budget=0", "deepening.responses=1", "deepening.budget=4", "qalign.steps=2", "carbon.responses=2",
            "latents.rounds=1", "latents.evolve=1", "neighbors=2", "jobs=1", f"out={tmp_path / 'c'}"]  # fmt: skip
    assert exit_code(["compare", *keys]) == 0, capsys.readouterr().err
    (run,) = (tmp_path / "c").glob("*/none-seed0")
    assert not (run / "asking").exists(), "nothing is left of the parts"
    lines = json.loads((tmp_path / "c" / "comparison.json").read_text())["tables"][0]["lines"]
    found = {line["name"]: line for line in lines}
    names = ["majority of 1, deepened", "chain of 2", "best of 2, calibrated", "latents sought", "latents evolved",
             "neighbors' votes", "neighbors' labels"]  # fmt: skip
    assert all(found[name]["tokens"] > 0 and found[name]["seconds"] > 0 for name in names)
