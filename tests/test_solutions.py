r"""Gold answers inside worked solutions: those of GSM8K behind ####, those of MATH in a box."""

import json

import pytest

from spinerl.config import load_config
from spinerl.data import check, load_data
from spinerl.errors import InputError
from spinerl.scoring import read_predictions
from spinerl.solutions import final_answer

GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 72"
MATH = "The area is $\\boxed{1}$ for one.\nSo it is $$\\boxed{\\frac{3}{\\sqrt{2}}}.$$ and done."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (GSM8K, "72"),
        (GSM8K + "\n", "72"),
        ("#### -1,234", "-1,234"),
        ("2 #### 3 #### 4", "4"),
        (MATH, "\\frac{3}{\\sqrt{2}}"),
        ("$\\boxed{\\text{(C)}}$", "\\text{(C)}"),
        ("so \\fbox{12}", "12"),
        ("so $\\boxed 7$.", "7"),
        ("so $\\boxed 7.", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{3} and \\boxed{4", "3"),  # the last whole box
        ("7", "7"),
        (" \\frac{1}{2} ", "\\frac{1}{2}"),
        ("\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}"),
        ("x = 5 # a comment", "x = 5 # a comment"),
        ("She has 5 apples.", "She has 5 apples."),
    ],
)
def test_the_answer_in_a_gold_text(text, answer):
    assert final_answer(text) == answer
    assert final_answer(answer) == answer  # twice is as once


@pytest.mark.parametrize("kind", ["auto", "math", "number", "yesno"])
def test_a_solution_without_a_mark_is_refused_with_the_way_out(kind):
    with pytest.raises(InputError) as refused:
        final_answer("First 3.\nThen 5.", kind=kind)
    line = str(refused.value)
    assert "\n" not in line
    for word in ("'First 3. Then 5.'", "data.columns.gold=null", "data.gold_extract=none"):
        assert word in line
    assert final_answer("First 3.\nThen 5.", kind="text") == "First 3.\nThen 5."
    assert final_answer("First 3.\nThen 5.", "none", kind) == "First 3.\nThen 5."


@pytest.mark.parametrize(
    ("how", "text"), [("hash", "\\boxed{5}"), ("boxed", "#### 5"), ("hash", "3 ####"), ("auto", "\\boxed{}")]
)
def test_a_mark_that_was_asked_for_must_be_there(how, text):
    with pytest.raises(InputError, match=r"data\.gold_extract"):
        final_answer(text, how)


@pytest.mark.parametrize(("text", "gold"), [(GSM8K, "72"), (MATH, "\\frac{3}{\\sqrt{2}}")])
@pytest.mark.parametrize("apart", [False, True])
def test_gold_columns_and_files(tmp_path, text, gold, apart):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "a", "question": "How many?", "solution": text, "answer": text}))
    overrides = [f"data={rows}", f"data.gold={rows}" if apart else "data.columns.gold=solution"]
    config = load_config(overrides=["model=some/model", *overrides])
    assert dict(load_data(config.data)[1]) == {"a": gold}
    assert check(config).findings == ()
    whole = load_config(overrides=["model=some/model", *overrides, "data.gold_extract=none"])
    assert dict(load_data(whole.data)[1]) == {"a": text.strip()}


def test_a_refused_gold_names_its_row_and_may_be_skipped(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "q", "answer": "5"}\n{"question": "p", "answer": "So 3.\\nThen 5."}\n')
    with pytest.raises(InputError, match=r"line 2: gold 'So 3. Then 5.' is a worked solution"):
        load_data(load_config(overrides=[f"data={rows}"]).data)
    questions, gold = load_data(load_config(overrides=[f"data={rows}", "data.on_bad_row=skip"]).data)
    assert (len(questions.questions), dict(gold)) == (1, {"0": "5"})


def test_the_letter_of_a_choice_may_follow_a_mark(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"question": "q", "options": ["red", "blue"], "answer": "Because.\\n#### B"}\n'
        '{"question": "p", "options": ["red\\nand green", "blue"], "answer": "red\\nand green"}\n'
    )
    config = load_config(overrides=[f"data={rows}", "data.columns.choices=options"])
    assert dict(load_data(config.data)[1]) == {"0": "B", "1": "A"}


def test_gold_of_saved_texts_is_read_alike(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"id": 1, "responses": ["\\boxed{72}"], "gold": GSM8K}))
    assert read_predictions(file)[0]["gold"] == "72"
    assert read_predictions(file, "none")[0]["gold"] == GSM8K


def test_shared_gold_stays_as_it_is():
    """Answers of real data sets that are answers already are not touched."""
    from tests.data.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED.name} next to the repository")
    for name in ("gsm8k", "math500", "amc", "aime2024", "svamp", "pubmedqa"):
        config = load_config(overrides=[f"data={SHARED / name}.jsonl"])
        whole = config.data.model_copy(update={"gold_extract": "none"})
        assert dict(load_data(config.data)[1]) == dict(load_data(whole)[1])
