"""Reading under limits: the machine's load changes no vote, what a limit cut is counted and said, no text is slow to
read, and rows of absurd sizes are refused by name."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time

import pytest

from spinerl.answers import Equivalence, count_vote, read_answer
from spinerl.answers import equivalence as equivalence_module
from spinerl.answers.strip import strip_pleasantries, strip_thoughts
from spinerl.cli import main
from spinerl.config import DataConfig, load_config
from spinerl.data import load_data
from spinerl.errors import InputError
from spinerl.isolated import IsolatedProcess

# answers that only math-verify compares, and one that takes more work than LIMIT_S lets a request do
HARD = ["x^2 < 4", "(-2,2)", r"x^3-2x<1", r"\prod_{k=1}^{40} (1+\frac{1}{k})", "41", r"x \ne 3", "7", "7.0"]
TOO_HARD = r"\int_0^1 x^2 e^{x} dx"
LIMIT_S = 0.15


class Load:
    """Six busy loops, until the block ends."""

    def __enter__(self):
        self._loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]

    def __exit__(self, *_):
        for loop in self._loops:
            loop.kill()
            loop.wait()


@pytest.fixture(scope="module")
def voted():
    """The classes and the counts, on a machine as it is."""
    with Equivalence(cpu_s=LIMIT_S) as equivalence:
        classes = equivalence.classes([*HARD, TOO_HARD, None])
        yield classes, dict(equivalence.stats)


def test_a_vote_is_the_same_on_a_busy_machine(voted):
    classes, stats = voted
    assert classes == (0, 0, 1, 2, 2, 3, 4, 4, None, None)
    with Equivalence(cpu_s=LIMIT_S) as equivalence:
        equivalence.equivalent("x^2 < 9", "x^2 < 16")  # its worker runs
        (worker,) = equivalence._idle
        worker.silent_s = 0.05  # far less than it takes to answer with the loops running
        with Load():
            assert equivalence.classes([*HARD, TOO_HARD, None]) == classes
        assert equivalence.stats["num_over_limit"] == stats["num_over_limit"] == 1
        assert equivalence.stats["num_workers_started"] == 1


def test_work_is_counted_alike_in_every_process():
    """What a request costs depends neither on time nor on the process: no two votes end at different places."""
    costs = []
    for _ in range(2):
        process = IsolatedProcess("spinerl.answers._worker", "it", cpu_s=5.0, memory_bytes=1 << 30, work=10_000)
        costs.append([process.ask({"op": "read", "a": answer})["work"] for answer in HARD])
        process.close()
    assert costs[0] == pytest.approx(costs[1], rel=0.02, abs=1)
    assert max(costs[0]) > 40


# (what is asked, options of Equivalence, the outcome of the first answer)
LIMITS = {
    "work": ([TOO_HARD, "7"], {"cpu_s": LIMIT_S}, "num_timeouts"),
    "the clock, where no objects are made": (["9^{9^{9^{9}}}", "7"], {"cpu_s": 0.1}, "num_timeouts"),
    "memory": (["2^{2^{40}}", "7"], {"memory_mb": 200, "cpu_s": 5.0}, "num_memory_exceeded"),
    "the budget of a call": ([r"x \ne 3", "7"], {"budget_s": 1e-9}, "num_skipped"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_a_limit_cuts_is_counted_each_time_it_is_asked_for(name):
    answers, options, outcome = LIMITS[name]
    with Equivalence(**options) as equivalence:
        for times in (1, 2):
            assert equivalence.classes(answers) == (None, 0)
            assert equivalence.stats["num_over_limit"] == times
        counted = equivalence.stats[outcome]
        if name == "memory":  # the kernel's refusal comes as an exception, or ends the process
            counted += equivalence.stats["num_crashes"]
        assert counted == (2 if outcome == "num_skipped" else 1)


def test_score_says_what_a_limit_cut(tmp_path, capsys, monkeypatch):
    limited(monkeypatch, cpu_s=LIMIT_S)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "a", "responses": [f"\\boxed{{{TOO_HARD}}}", "\\boxed{7}"], "gold": "7"}) + "\n")
    assert main_code(["score", str(file)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 answer or pairs of answers took too long to compare: they count as unreadable, or as different" in printed


def limited(monkeypatch, **options) -> None:
    """Other default limits than the product's, for what makes its own `Equivalence`."""
    first = equivalence_module.Equivalence.__init__
    monkeypatch.setattr(first, "__kwdefaults__", {**first.__kwdefaults__, **options})


def main_code(arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_a_step_and_an_evaluation_count_what_a_limit_cut(tmp_path, monkeypatch):
    """With limits that nothing fits: the metrics have the count, and the run says so."""
    from spinerl.train import adapt
    from tests.e2e.test_guarded_runs import Quiet

    class Notes(Quiet):
        def __init__(self):
            self.said = []

        def note(self, text):
            self.said.append(text)

    def blind(text, *_args, **_options):
        return read_answer("\\boxed{x \\ne " + str(len(text) % 3) + "}", "math")

    monkeypatch.setattr("spinerl.answers.counting.read_answer", blind)  # every response is a hard one
    limited(monkeypatch, budget_s=1e-9)
    notes = Notes()
    run = adapt(
        load_config(
            overrides=[
                "data.max_questions=2", "questions_per_step=2", "group_size=2", "steps=1", "threads=1", "guard=off",
                "rollout.max_new_tokens=6", "answer.truncated=count", "eval.samples=2", "answer.kind=math",
                f"run={tmp_path / 'run'}",
            ]
        ),
        notes,
    )  # fmt: skip
    (step,) = run.rows("metrics.jsonl")
    assert step["label/over_limit"] > 0
    assert run.rows("eval.jsonl")[0]["eval/over_limit"] > 0
    assert any(said.startswith("step 1: ") and "took too long to compare" in said for said in notes.said)


# --------------------------------------------------------------------------------------------- linear reading

FRAGMENTS = [
    "<answer>", "</answer>", "<answer>x</answer>", "\\boxed{", "\\boxed{1}", "{", "}", "$", "$$", "(",
    "<think>", "</think>", "[THINK]", "the answer is ", "the result of this is ", "**", "\\frac", "\\text{",
    "7", "1,", "1 ", "1.", " ", "\n", "\t", "= ", "答案", "答案是", "。", "：", "Final answer:", "####", "\\(",
    "\\[", '"', "<|channel|>analysis", "<|im_start|>", "assistantanalysis", "\nQuestion:", ". Q: ", "I hope ",
    "yes ", "A, B ", "(B) ", "option ", "so ", "not ", "answer: $x$ ", "Antwort ", "x^", "-", "\\", "!", "…",
    "✓ ", "`", "```\n", "\u00a0", "if ", "answer - ", "{}", "$x", "\\boxed{$", "** the answer is **",
    "(\\frac{", "1,2;", "<answer>\\boxed{", "<think>1</think>", "is ",
]  # fmt: skip
KINDS = ("auto", "number", "choice", "yesno", "text")
MOST_S = 1.0  # processor seconds for 100 KB, on a machine that is busy with other things too
MOST_GROWTH = 3.0  # from 50 KB to 100 KB


def seconds(call, most: float = 0.4) -> float:
    """Processor time of a call; the least of three where one takes longer than `most` (memory is cleared up)."""
    found = []
    while not found or (found[-1] > most and len(found) < 3):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)


def test_reading_is_linear_in_the_text():
    """Each fragment in the kind that reads all forms, and in one of the others."""
    slow = {}
    for number, fragment in enumerate(FRAGMENTS):
        for kind in ("auto", KINDS[1 + number % (len(KINDS) - 1)]):
            half, whole = ((fragment * (size // len(fragment) + 1))[:size] for size in (50_000, 100_000))
            choices = ("yes", "x y") if kind == "choice" else ()
            took = seconds(lambda text=whole, kind=kind, choices=choices: read_answer(text, kind, choices=choices))
            if took < 0.4:
                continue
            before = seconds(lambda text=half, kind=kind, choices=choices: read_answer(text, kind, choices=choices))
            if took > MOST_S or took > MOST_GROWTH * before:
                slow[fragment, kind] = before, took
    assert not slow


def test_pairs_of_fragments_are_read_fast():
    parts = ["<answer>", "</answer>", "\\boxed{", "}", "$", "(", "the answer is ", "**", " ", "\n"]
    slow = {}
    for first, second in itertools.permutations(parts, 2):
        blocks = first * (10_000 // len(first)) + second * 10_000
        for text in ((first + second) * 10_000, blocks):
            took = seconds(lambda text=text[:20_000]: read_answer(text, "auto"))
            if took > 0.5:
                slow[first, second] = took
    assert not slow


@pytest.mark.parametrize("fragment", ["<answer>", "\\boxed{", "the answer is ", "1,", "答案是", " \n"])
def test_so_are_votes_and_scores_and_what_they_are_made_of(fragment, tmp_path, capsys):
    text = (fragment * 100_000)[:100_000]
    with Equivalence() as equivalence:
        assert seconds(lambda: count_vote([text] * 2, [False] * 2, "auto", equivalence)) < 2 * MOST_S
    assert seconds(lambda: strip_thoughts(text)) < 0.3
    assert seconds(lambda: strip_pleasantries(text)) < 0.3
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "a", "responses": [text], "gold": text[:40]}) + "\n")
    assert seconds(lambda: main_code(["score", str(file), "--explain"])) < 5 * MOST_S
    assert "a response 1: " in capsys.readouterr().out


@pytest.mark.parametrize("option", ["x" * 100_000, "1," * 50_000, "the answer is " * 7_000, "\\text{" * 17_000])
def test_long_options_are_read_once(option):
    text = "The answer is it. I choose option that. So the answer is 4. " * 40
    assert seconds(lambda: read_answer(text, "choice", choices=(option, option + "y", "it"))) < MOST_S


# ------------------------------------------------------------------------------------------------ huge rows

BIG = "9" * 2_000_000
# (the row, where a number as its text; what the line says)
ROWS = {
    "a question": ({"question": BIG}, "column 'question' has 2,000,000 characters, over 1,000,000"),
    "a question in a chat": ({"question": [{"role": "user", "content": BIG}]}, "has 2,000,000 characters, over"),
    "earlier messages": (
        {"question": [{"role": "assistant", "content": BIG[:999_999]}, {"role": "user", "content": "2?"}]},
        "the question with its options and earlier messages has 1,000,001 characters, over 1,000,000",
    ),
    "an option": ({"question": "?", "choices": ["a", BIG]}, "column 'options' has 2,000,000 characters"),
    "all options": ({"question": "?", "choices": [BIG[:600_000]] * 2}, "has 1,200,0"),
    "a million options": ({"question": "?", "choices": ["a"] * 10**6}, "1000000 option(s): multiple choice takes 2 to"),
    "a million options as text": (
        {"question": "?", "choices": str(["a"] * 10**6)},
        "options are text of 5,000,000 characters, over 100,000",
    ),
    "a gold answer": ({"question": "?", "answer": BIG}, "column 'answer' has 2,000,000 characters"),
    "an id": ({"question": "?", "id": BIG}, "column 'id' has 2,000,000 characters, over 1,000"),
    "a number of 10^5 digits": ('{"question": ' + BIG[:100_000] + "}", "a whole number of over 4,300 digits: write it"),
    "a gold number of 10^5 digits": ('{"question": "?", "answer": ' + BIG[:100_000] + "}", "over 4,300 digits"),
    "nested lists": ('{"question": ' + "[" * 100_000 + "}", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_huge_row_is_refused_with_its_number(name, tmp_path):
    row, said = ROWS[name]
    file = tmp_path / "rows.jsonl"
    line = row if isinstance(row, str) else json.dumps({"id": "b", **row})
    file.write_text(f'{{"question": "2 + 3?", "id": "a", "answer": "5"}}\n{line}\n')
    began = time.process_time()
    with pytest.raises(InputError) as refused:
        load_data(DataConfig(name=str(file)))
    assert str(refused.value).startswith(f"{file}, line 2: ")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 1000
    questions, _ = load_data(DataConfig(name=str(file), on_bad_row="skip"))
    assert [question.text for question in questions.questions] == ["2 + 3?"]
    assert time.process_time() - began < 5


def test_many_rows_are_fine_and_a_long_gold_is_only_unreadable(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    gold = {"a": "9" * 100_000, "b": "\\boxed{" * 100_000, "c": "#### " + "1," * 50_000}
    rows = [{"id": key, "question": f"{key}?", "answer": text} for key, text in gold.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds(lambda: main_code(["data", "check", str(file), "data.gold_extract=auto"])) < 20
    assert "3 rows" in capsys.readouterr().out
    with file.open("w") as out:
        out.writelines(f'{{"question": "{n} + 1?"}}\n' for n in range(20_000))
    assert len(load_data(DataConfig(name=str(file)))[0].questions) == 20_000


def test_a_20_mb_question_takes_no_gigabytes(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "2 + 3? " * 3_000_000}) + "\n")

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))

    code = (
        "import sys; from spinerl.config import DataConfig; from spinerl.data import load_data\n"
        "load_data(DataConfig(name=sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(file)]
    found = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert "line 1: column 'question' has 21,000,000 characters, over 1,000,000" in found.stderr
