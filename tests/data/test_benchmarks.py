"""Every definition against a small folder with the data set's true schema, read through `datasets`."""

import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Picture

from spinerl.data import BENCHMARKS, Definition, check, hub, list_datasets, load_data, parts_of, resolve
from spinerl.data.definitions import definition_of
from spinerl.data.prompts import INSTRUCTIONS
from spinerl.errors import InputError
from spinerl.images import open_image

TEXT = Value("string")


def write_readme(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The head of a hub data set's card: which files make which configuration and split."""
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def picture(kind: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Picture.new("RGB", size, "teal").save(file, kind)
    return file.getvalue()


def unpack(folder: Path, archive: str, files: dict[str, bytes]) -> None:
    """The archive of images in the folder, as on the hub, and its files next to it, as the note asks for."""
    with zipfile.ZipFile(folder / archive, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
        zipped.extractall(folder)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def math_500(folder: Path) -> None:
    row = {
        "problem": "Convert the point $(0,3)$.",
        "solution": "We have ...",
        "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    }
    write_jsonl(folder / "test.jsonl", [row])


def amc(folder: Path) -> None:
    features = Features({"id": Value("int64"), "problem": TEXT, "answer": Value("float64"), "url": TEXT})
    rows = [{"id": 0, "problem": "What is $m+n$?", "answer": 142.0, "url": "https://..."}]
    Dataset.from_list(rows, features=features).to_parquet(folder / "data-train-00000-of-00001.parquet")
    write_readme(folder, {"default": {"train": "data-train-*"}})


def aime_2025(folder: Path) -> None:
    write_jsonl(folder / "test.jsonl", [{"problem": "Find the sum.", "answer": "70", "id": "0"}])


def aime_2024(folder: Path) -> None:
    row = {
        "id": 60,
        "problem": "Every morning Aya ...",
        "solution": "...",
        "answer": "204",
        "url": "",
        "year": "2024",
    }
    Dataset.from_list([row]).to_parquet(folder / "data-train-00000-of-00001.parquet")
    write_readme(folder, {"default": {"train": "data-train-*"}})


def gsm8k(folder: Path) -> None:
    (folder / "main").mkdir()
    row = {"question": "Janet's ducks lay 16 eggs.", "answer": "She sells 16 - 7 = <<16-7=9>>9.\n#### 1,018"}
    for split in ("train", "test"):
        Dataset.from_list([row]).to_parquet(folder / "main" / f"{split}-00000-of-00001.parquet")
    splits = {"train": "main/train-*", "test": "main/test-*"}
    write_readme(folder, {"main": splits, "socratic": splits})


def gpqa(folder: Path) -> None:
    row = {
        "Pre-Revision Question": "Old?",
        "Question": "Which energy difference?\n",
        "Correct Answer": "10^-4 eV\n",
        "Incorrect Answer 1": "10^-11 eV",
        "Incorrect Answer 2": "10^-8 eV",
        "Incorrect Answer 3": "10^-9 eV",
        "Record ID": "rec06pnAkLOr2t2mp",
        "High-level domain": "Physics",
        "Subdomain": "Physics (general)",
    }
    Dataset.from_list([row]).to_csv(folder / "gpqa_diamond.csv")
    Dataset.from_list([row] * 2).to_csv(folder / "gpqa_main.csv")
    write_readme(folder, {"gpqa_main": {"train": "gpqa_main.csv"}, "gpqa_diamond": {"train": "gpqa_diamond.csv"}})


def mmlu(folder: Path) -> None:
    features = Features(
        {"question": TEXT, "subject": TEXT, "choices": List(TEXT), "answer": ClassLabel(names=list("ABCD"))}
    )
    row = {"question": "Find c.", "subject": "abstract_algebra", "choices": ["0", "1", "2", "3"], "answer": 1}
    (folder / "all").mkdir()
    Dataset.from_list([row], features=features).to_parquet(folder / "all" / "test-00000-of-00001.parquet")
    write_readme(folder, {"all": {"test": "all/test-*"}, "anatomy": {"test": "all/test-*"}})


def medqa(folder: Path) -> None:
    row = {
        "question": "A junior surgery resident cuts a tendon. What next?",
        "answer": "Tell the attending",
        "options": {"A": "Disclose", "B": "Tell the attending", "C": "Report", "D": "Refuse"},
        "meta_info": "step1",
        "answer_idx": "B",
        "metamap_phrases": ["junior surgery resident"],
    }
    write_jsonl(folder / "phrases_no_exclude_test.jsonl", [row])
    write_jsonl(folder / "phrases_no_exclude_train.jsonl", [row])


def pubmedqa(folder: Path) -> None:
    context = {
        "contexts": ["Cells die.", "We looked."],
        "labels": ["BACKGROUND", "RESULTS"],
        "meshes": ["Alismataceae"],
        "reasoning_required_pred": ["y"],
        "reasoning_free_pred": ["y"],
    }
    row = {
        "pubid": 21645374,
        "question": "Do mitochondria play a role?",
        "context": context,
        "long_answer": "Results depicted ...",
        "final_decision": "yes",
    }
    (folder / "pqa_labeled").mkdir()
    Dataset.from_list([row]).to_parquet(folder / "pqa_labeled" / "train-00000-of-00001.parquet")
    files = {"train": "pqa_labeled/train-*"}
    write_readme(folder, {"pqa_artificial": files, "pqa_labeled": files})


def mathvision(folder: Path) -> None:
    features = Features(
        {
            "id": TEXT,
            "question": TEXT,
            "options": List(TEXT),
            "image": TEXT,
            "decoded_image": Image(),
            "answer": TEXT,
            "solution": TEXT,
            "level": Value("int64"),
            "subject": TEXT,
        }
    )
    more = {
        "image": "images/1.jpg",
        "decoded_image": {"bytes": picture("JPEG", (40, 30)), "path": "1.jpg"},
        "solution": None,
        "level": 2,
        "subject": "counting",
    }
    rows = [
        {"id": "4", "question": "Which is it?\n<image1>", "options": ["A", "B", "C"], "answer": "B", **more},
        {"id": "5", "question": "How many? <image1>", "options": [], "answer": "16", **more},
        {"id": "33", "question": "From <image2> to <image1>?\n<image6>", "options": ["A", "B"], "answer": "A", **more},
        {"id": "6", "question": "Which part?", "options": ["$4$", "$2$", "$1$"], "answer": "B", **more},
    ]
    # Written without `datasets`, whose writer of images needs Pillow; the schema's note says they are images.
    table = pyarrow.Table.from_pylist(rows)
    note = json.dumps({"info": {"features": features.to_dict()}})
    table = table.replace_schema_metadata({"huggingface": note})
    for split in ("test", "testmini"):
        pyarrow.parquet.write_table(table, folder / f"data-{split}-00000-of-00001.parquet")
    write_readme(folder, {"default": {"test": "data-test-*", "testmini": "data-testmini-*"}})


def slake(folder: Path) -> None:
    row = {
        "img_id": 1,
        "img_name": "xmlab1/source.jpg",
        "question": "What modality is used to take this image?",
        "answer": "MRI",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": 9,
    }
    chinese = {**row, "question": "这张图片是什么模态?", "q_lang": "zh", "qid": 10}
    for split in ("train", "validation", "test"):
        (folder / f"{split}.json").write_text(json.dumps([row, chinese]))
    scan = {"source.jpg": picture("JPEG", (32, 32)), "mask.png": picture("PNG", (32, 32)), "question.json": b"[]"}
    unpack(folder, "imgs.zip", {f"imgs/xmlab{n}/{name}": data for n in (1, 2) for name, data in scan.items()})


def medxpertqa_mm(folder: Path) -> None:
    row = {
        "id": "MM-2002",
        "question": "Which artery labeled in Figure A?\nAnswer Choices: (A) C (B) D (C) A (D) B (E) None",
        "options": {"A": "C", "B": "D", "C": "A", "D": "B", "E": "None"},
        "label": "C",
        "images": ["MM-2002-a.jpeg", "MM-2002-b.jpeg"],
        "medical_task": "Basic Medicine",
        "body_system": "Cardiovascular",
        "question_type": "Understanding",
    }
    for config in ("MM", "Text"):
        write_jsonl(folder / config / "dev.jsonl", [row])
        write_jsonl(folder / config / "test.jsonl", [row])
    write_readme(folder, {c: {"dev": f"{c}/dev.jsonl", "test": f"{c}/test.jsonl"} for c in ("MM", "Text")})
    unpack(folder, "images.zip", {f"images/MM-2002-{n}.jpeg": picture("JPEG", (20, 30)) for n in "ab"})


# name -> (writer of the folder, and of its last question: id, text, kind, gold, subject, images)
CASES: dict[str, tuple[Callable[[Path], None], tuple[Any, ...]]] = {
    "math-500": (
        math_500,
        (
            "test/precalculus/807.json",
            "Convert the point $(0,3)$.",
            "math",
            "\\left( 3, \\frac{\\pi}{2} \\right)",
            "Precalculus",
            (),
        ),
    ),
    "amc": (amc, ("0", "What is $m+n$?", "math", "142", None, ())),
    "aime-2025": (aime_2025, ("0", "Find the sum.", "math", "70", None, ())),
    "aime-2024": (aime_2024, ("60", "Every morning Aya ...", "math", "204", None, ())),
    "gsm8k": (gsm8k, ("0", "Janet's ducks lay 16 eggs.", "math", "1,018", None, ())),
    "gpqa": (
        gpqa,
        (
            "rec06pnAkLOr2t2mp",
            "Which energy difference?\nA. 10^-9 eV\nB. 10^-11 eV\nC. 10^-8 eV\nD. 10^-4 eV",
            "choice",
            "D",
            "Physics",
            (),
        ),
    ),
    "mmlu": (mmlu, ("0", "Find c.\nA. 0\nB. 1\nC. 2\nD. 3", "choice", "B", "abstract_algebra", ())),
    "medqa": (
        medqa,
        (
            "0",
            "A junior surgery resident cuts a tendon. What next?"
            "\nA. Disclose\nB. Tell the attending\nC. Report\nD. Refuse",
            "choice",
            "B",
            "step1",
            (),
        ),
    ),
    "pubmedqa": (
        pubmedqa,
        (
            "21645374",
            "Abstract:\nCells die.\nWe looked.\n\nQuestion: Do mitochondria play a role?",
            "yesno",
            "yes",
            None,
            (),
        ),
    ),
    "mathvision": (
        mathvision,
        (
            "6",
            "Which part?\nA. $4$\nB. $2$\nC. $1$",
            "choice",
            "B",
            "counting",
            ("1.jpg",),
        ),
    ),
    "slake": (
        slake,
        (
            "9",
            "What modality is used to take this image?",
            "text",
            "MRI",
            "Modality",
            ("imgs/xmlab1/source.jpg",),
        ),
    ),
    "medxpertqa-mm": (
        medxpertqa_mm,
        (
            "MM-2002",
            "Which artery labeled in Figure A?\nA. C\nB. D\nC. A\nD. B\nE. None",
            "choice",
            "C",
            "Basic Medicine",
            ("images/MM-2002-a.jpeg", "images/MM-2002-b.jpeg"),
        ),
    ),
}


@pytest.fixture(params=BENCHMARKS)
def benchmark(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, tuple[Any, ...]]:
    """(name, folder with its schema, what its last question must be)"""
    name = request.param
    folder = tmp_path / name
    folder.mkdir()
    write, expected = CASES[name]
    write(folder)
    return name, str(folder), expected


def test_a_local_copy_loads_by_name_only(configure, benchmark):
    name, folder, expected = benchmark
    questions, gold = load_data(configure(f"data={name}", f"data.path={folder}").data)
    q = questions.questions[-1]
    assert all(image.path for image in q.images)
    names = tuple(os.path.relpath(i.path or "", folder) if i.data is None else i.path for i in q.images)
    assert (q.id, q.text, q.answer_kind, gold[q.id], q.subject, names) == expected


def test_a_resolved_configuration_loads_the_same(configure, benchmark):
    name, folder, _ = benchmark
    config = configure(f"data={name}", f"data.path={folder}")
    resolved = resolve(config)
    assert resolve(resolved) == resolved
    assert resolved.data.split is not None
    assert resolved.data.columns.gold != "auto"
    assert (resolved.data.image_folder is not None) == (name in ("slake", "medxpertqa-mm"))
    assert load_data(resolved.data, answer_kind=resolved.answer.kind) == load_data(config.data)


def test_a_plain_copy_serves_whatever_its_one_split_is_called(configure, jsonl, tmp_path):
    (tmp_path / "copy").mkdir()
    jsonl([{"question": "q", "answer": "#### 1"}], "copy/rows.jsonl")
    config = configure("data=gsm8k", f"data.path={tmp_path / 'copy'}")
    assert load_data(config.data) == load_data(resolve(config).data, answer_kind="math")
    with pytest.raises(InputError, match="no split 'dev'"):
        load_data(configure("data=gsm8k", f"data.path={tmp_path / 'copy'}", "data.split=dev").data)


def test_no_gold_if_not_wanted(configure, benchmark):
    name, folder, _ = benchmark
    questions, gold = load_data(configure(f"data={name}", f"data.path={folder}", "data.columns.gold=null").data)
    assert questions.questions
    assert dict(gold) == {}


def test_check_misses_only_rows(configure, benchmark):
    name, folder, _ = benchmark
    report = check(configure(f"data={name}", f"data.path={folder}"))
    assert report.ok
    assert [finding.what.partition(" rows where ")[2] for finding in report.findings] == [
        f"{BENCHMARKS[name]['rows']} were expected: another version of the data set?"
    ]


def test_without_network_the_message_says_how_to_go_on(configure, benchmark):
    name, _, _ = benchmark
    with pytest.raises(InputError, match=r"set data\.path=FOLDER") as caught:
        load_data(configure(f"data={name}").data)
    message = str(caught.value)
    assert "\n" not in message
    assert BENCHMARKS[name]["hub"] in message
    if name == "gpqa":
        assert "gated: accept the conditions on the hub page" in message


def test_mathvision_mixes_kinds_and_says_letters_in_the_picture_once(configure, tmp_path):
    mathvision(tmp_path)
    questions, gold = load_data(configure("data=mathvision", f"data.path={tmp_path}").data)
    first, second, third, _ = questions.questions
    assert (first.text, first.answer_kind, gold["4"]) == ("Which is it?\n<image>\nA\nB\nC", "choice", "B")
    assert (second.text, second.answer_kind, gold["5"]) == ("How many? <image>", "math", "16")
    assert parts_of(third) == [*third.images, "From image 2 to image 1?\nimage 6\nA\nB"]  # one picture of all parts
    assert resolve(configure("data=mathvision")).answer.kind == "auto"


SIZES = {"mathvision": [(40, 30)] * 4, "slake": [(32, 32)], "medxpertqa-mm": [(20, 30)] * 2}


@pytest.mark.parametrize("name", SIZES)
def test_every_image_of_a_local_copy_opens(configure, tmp_path, monkeypatch, name):
    folder = tmp_path / "copy"
    folder.mkdir()
    CASES[name][0](folder)
    monkeypatch.chdir(tmp_path)
    questions, _ = load_data(configure(f"data={name}", "data.path=copy").data)
    monkeypatch.chdir("/")
    images = [open_image(image, question_id=q.id) for q in questions.questions for image in q.images]
    assert [image.size for image in images] == SIZES[name]


@pytest.mark.parametrize(("name", "inside"), [("slake", "imgs"), ("medxpertqa-mm", "images")])
def test_images_that_are_not_unpacked_are_asked_for(configure, tmp_path, monkeypatch, name, inside):
    folder = tmp_path / "copy"
    folder.mkdir()
    CASES[name][0](folder)
    (folder / inside).rename(folder / "elsewhere")
    overrides = (f"data={name}", f"data.path={folder}")
    with pytest.raises(
        InputError, match=rf"data\.image_folder=.*/{inside}: there is no such folder.*unpack it"
    ) as caught:
        load_data(configure(*overrides).data)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"imgs\.zip: is a file: unpack it|images\.zip: is a file: unpack it"):
        load_data(configure(*overrides, f"data.image_folder={folder / inside}.zip").data)
    questions, _ = load_data(configure(*overrides, f"data.image_folder={folder / 'elsewhere'}").data)
    assert questions.questions[0].images
    questions, _ = load_data(configure(*overrides, "data.columns.images=null").data)
    assert not questions.questions[0].images
    rows = Dataset.from_list([{**dict.fromkeys(COLUMNS[name], "x"), "q_lang": "en"}])
    monkeypatch.setattr(hub, "open_hub", lambda *_: rows)
    with pytest.raises(InputError, match=r"are files next to its rows: set data\.image_folder=FOLDER, or .*unpack it"):
        load_data(configure(f"data={name}").data)


COLUMNS = {
    "slake": ["qid", "question", "answer", "content_type", "img_name"],
    "medxpertqa-mm": ["id", "question", "label", "options", "medical_task", "images"],
}


def test_slake_counts_the_rows_in_another_language(configure, tmp_path):
    slake(tmp_path)
    questions, _ = load_data(configure("data=slake", f"data.path={tmp_path}").data)
    assert dict(questions.skipped) == {"q_lang is not en": 1}


def test_gpqa_shuffles_by_id_only_and_evenly(configure, jsonl):
    wrong = {f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}
    row = {"Question": "q", "Correct Answer": "right", "High-level domain": "Physics", **wrong}
    rows = [{**row, "Record ID": f"rec{i}", "Question": f"q{i}"} for i in range(400)]
    overrides = ("data=gpqa", f"data.path={jsonl(rows)}")
    questions, gold = load_data(configure(*overrides).data)
    for question in questions.questions:
        assert question.choices["ABCD".index(gold[question.id])] == "right"
    # 400 draws of 1/4: mean 100, standard deviation 8.7; within 4 of them
    assert all(65 < count < 135 for count in Counter(gold.values()).values())
    again, same_gold = load_data(configure("data=gpqa", f"data.path={jsonl(rows[::-1])}").data)
    assert dict(same_gold) == dict(gold)
    assert set(again.questions) == set(questions.questions)


def test_names_and_hub_ids_find_the_definition(configure):
    for word in ("math-500", "MATH-500", "math500", "HuggingFaceH4/MATH-500"):
        definition = definition_of(configure(f"data={word}").data)
        assert definition is not None
        assert definition.rows == 500
    assert definition_of(configure("data=./gsm8k").data) is None  # a folder
    text_part = configure("data=TsinghuaC3I/MedXpertQA", "data.config=Text").data
    assert definition_of(text_part) is None  # another subset than the definition's


def test_what_the_user_gives_wins_over_the_definition(configure, tmp_path):
    gsm8k(tmp_path)
    config = configure(
        "data=gsm8k",
        f"data.path={tmp_path}",
        "data.split=train",
        "data.config=socratic",
        "data.columns.question=answer",
        "prompt.instruction=Go.",
        "answer.kind=number",
    )
    resolved = resolve(config)
    assert (resolved.data.split, resolved.data.config) == ("train", "socratic")
    assert resolved.data.columns.question == "answer"
    assert resolved.data.columns.gold == "answer"
    assert (resolved.prompt.instruction, resolved.answer.kind) == ("Go.", "number")
    questions, _ = load_data(config.data, answer_kind="number")
    assert questions.questions[0].text.startswith("She sells")
    assert questions.questions[0].answer_kind == "number"


def test_a_local_file_of_other_columns_says_which_there_are(configure, jsonl):
    path = jsonl([{"id": "1", "question": "q", "answer": "1", "unique_id": "x", "subject": "y"}])
    with pytest.raises(InputError, match=r"no column 'problem'.*question.*set data\.columns\.question"):
        load_data(configure("data=math-500", f"data.path={path}").data)
    questions, _ = load_data(configure("data=math-500", f"data.path={path}", "data.columns.question=question").data)
    assert questions.questions[0].id == "x"


def test_the_table_is_complete():
    assert set(CASES) == set(BENCHMARKS)
    rows = {row["name"]: row for row in list_datasets()}
    assert len(rows) == 12
    for name, raw in BENCHMARKS.items():
        definition = Definition.model_validate(raw)
        assert definition.rows
        assert definition.licence
        assert definition.source.startswith(("http", "A", "5"))
        assert definition.kind in INSTRUCTIONS
        assert rows[name]["hub"] == definition.hub
        assert rows[name]["images"] == (definition.columns.images != "auto")
    assert [name for name, row in rows.items() if row["images"]] == ["mathvision", "slake", "medxpertqa-mm"]


def test_a_definition_of_ones_own(configure, jsonl, tmp_path):
    jsonl([{"case": "Fever.", "drugs": ["x", "y"], "right": "y", "lang": "en"}, {"case": "f", "lang": "de"}])
    fields = {
        "path": "rows.jsonl",
        "columns": {"question": "case", "choices": "drugs", "gold": "right"},
        "where": {"lang": "en"},
        "template": "Case: {case}",
        "instruction": "Choose.",
        "system": "You are careful.",
        "kind": "choice",
    }
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    (tmp_path / "mine.yaml").write_text(json.dumps(fields))  # JSON is YAML
    for name in ("mine.json", "mine.yaml"):
        config = resolve(configure(f"data={tmp_path / name}"))
        questions, gold = load_data(config.data, answer_kind=config.answer.kind)
        assert [q.text for q in questions.questions] == ["Case: Fever.\nA. x\nB. y"]
        assert dict(gold) == {"0": "B"}
        assert (config.prompt.instruction, config.prompt.system) == ("Choose.", "You are careful.")
        assert config.answer.kind == "choice"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hub: a/b\npath: c.jsonl", "give one of `hub: owner/name` and `path: FILE`"),
        ("kind: math", "give one of"),
        ("hub: a/b\nsplitt: test", r"unknown field splitt \(did you mean \"split\"\?\); allowed: hub"),
        (
            "hub: a/b\ncolumns: {questoin: q}",
            r"unknown field columns.questoin \(did you mean \"question\"\?\)",
        ),
        ("hub: a/b\nkind: maths", "kind='maths': input should be 'auto', 'math'"),
        ("hub: a/b\nwhere: {lang: [en]}", "where.lang"),
        ("[1]", "must hold `key: value` lines"),
        ("path: gone.jsonl", r"gone\.jsonl: there is no such file"),
        ("path: rows.jsonl\ntemplate: 'Case: {cases}'", r"no column 'cases' .*set the definition's template"),
        ("path: rows.jsonl\nwhere: {lang: en}", r"no column 'lang'.*set the definition's where"),
    ],
)
def test_bad_definitions_are_refused(configure, jsonl, tmp_path, text, message):
    jsonl([{"question": "q", "case": "c"}])
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_data(configure(f"data={tmp_path / 'mine.yaml'}").data)
    assert "\n" not in str(caught.value)


def test_a_template_with_an_empty_part_is_an_empty_question(configure, jsonl, tmp_path):
    jsonl([{"a": "x", "b": ""}, {"a": "x", "b": "y"}])
    (tmp_path / "mine.yaml").write_text("path: rows.jsonl\ntemplate: '{a} and {b}'")
    questions, _ = load_data(configure(f"data={tmp_path / 'mine.yaml'}").data)
    assert [q.text for q in questions.questions] == ["x and y"]
    assert dict(questions.skipped) == {"empty question": 1}
