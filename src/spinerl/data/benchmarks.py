"""The benchmarks as data-set definitions: one literal table, written as a user's own definition file is.

The fields are those of `spinerl.data.definitions.Definition`; docs/data.md explains each.  `rows` counts the
rows that pass `where`.  Prompt instructions are the answer kind's own (`spinerl.data.prompts.INSTRUCTIONS`)
unless a row gives one, so that every benchmark of a kind is asked in the same words.
"""

from __future__ import annotations

from typing import Any

__all__ = ["BENCHMARKS"]

QWEN_MATH = "https://huggingface.co/Qwen/Qwen2.5-Math-1.5B-Instruct"
TTRL = "https://arxiv.org/abs/2504.16084"
SPINE = "https://arxiv.org/abs/2511.17938"
MAA = "Open access; for a licence see the hub page. The problems are the Mathematical Association of America's."

BENCHMARKS: dict[str, dict[str, Any]] = {
    # Mathematics: free answers.
    "math-500": {
        "hub": "HuggingFaceH4/MATH-500",
        "split": "test",
        "columns": {"id": "unique_id", "question": "problem", "gold": "answer", "subject": "subject"},
        "kind": "math",
        "rows": 500,
        "licence": "MIT (the MATH data set); open access.",
        "source": f"500 problems of MATH chosen by https://arxiv.org/abs/2305.20050; prompt: {QWEN_MATH}",
    },
    "amc": {
        "hub": "AI-MO/aimo-validation-amc",
        "split": "train",
        "columns": {"id": "id", "question": "problem", "gold": "answer"},
        "kind": "math",
        "rows": 83,
        "licence": MAA,
        "source": f"AMC 12 of 2022 and 2023, as in {TTRL}; prompt: {QWEN_MATH}",
        "note": "Answers are numbers such as 142.0, read as 142. The only split is called train.",
    },
    "aime-2025": {
        "hub": "math-ai/aime25",
        "split": "test",
        "columns": {"id": "id", "question": "problem", "gold": "answer"},
        "kind": "math",
        "rows": 30,
        "licence": MAA,
        "source": f"AIME I and II of 2025; prompt: {QWEN_MATH}",
    },
    "aime-2024": {
        "hub": "HuggingFaceH4/aime_2024",
        "split": "train",
        "columns": {"id": "id", "question": "problem", "gold": "answer"},
        "kind": "math",
        "rows": 30,
        "licence": MAA,
        "source": f"AIME I and II of 2024; prompt: {QWEN_MATH}",
        "note": "The only split is called train.",
    },
    "gsm8k": {
        "hub": "openai/gsm8k",
        "config": "main",
        "split": "test",
        "columns": {"question": "question", "gold": "answer"},
        "gold_after": "####",
        "kind": "math",
        "rows": 1319,
        "licence": "MIT; open access.",
        "source": f"https://arxiv.org/abs/2110.14168; prompt: {QWEN_MATH}",
        "note": "No id column: a question's id is its row number. The gold follows #### in the solution.",
    },
    # General and expert knowledge: multiple choice.
    "gpqa": {
        "hub": "Idavidrein/gpqa",
        "config": "gpqa_diamond",
        "split": "train",
        "columns": {
            "id": "Record ID",
            "question": "Question",
            "gold": "Correct Answer",
            "choices": ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"],
            "subject": "High-level domain",
        },
        "gold_form": "text",
        "shuffle_choices": True,
        "kind": "choice",
        "rows": 198,
        "licence": "CC-BY-4.0; gated: accept the conditions on the hub page, then `hf auth login`.",
        "source": "https://arxiv.org/abs/2311.12022 (diamond); prompt: ours",
        "note": "The options' order comes from a hash of the question's id: the same in every run, "
        f"and it says nothing. The percentages in {SPINE} are multiples of 1/197: "
        "one row fewer was used there.",
    },
    "mmlu": {
        "hub": "cais/mmlu",
        "config": "all",
        "split": "test",
        "columns": {"question": "question", "gold": "answer", "choices": "choices", "subject": "subject"},
        "gold_form": "letter",  # the column is a class label whose names are the letters
        "kind": "choice",
        "rows": 14042,
        "licence": "MIT; open access.",
        "source": "https://arxiv.org/abs/2009.03300; prompt: ours",
        "note": "57 subjects. No id column: a question's id is its row number.",
    },
    # Medicine.
    "medqa": {
        "hub": "GBaker/MedQA-USMLE-4-options",
        "split": "test",
        "columns": {
            "question": "question",
            "gold": "answer_idx",
            "choices": "options",
            "subject": "meta_info",
        },
        "gold_form": "letter",
        "kind": "choice",
        "rows": 1273,
        "licence": "Open access; for a licence see the hub page.",
        "source": "https://arxiv.org/abs/2009.13081 (USMLE, four options); prompt: ours",
        "note": "meta_info is the step of the exam. No id column: a question's id is its row number.",
    },
    "pubmedqa": {
        "hub": "qiaojin/PubMedQA",
        "config": "pqa_labeled",
        "split": "train",
        "columns": {"id": "pubid", "gold": "final_decision"},
        "template": "Abstract:\n{context.contexts}\n\nQuestion: {question}",
        "kind": "yesno",
        "rows": 1000,
        "licence": "MIT; open access.",
        "source": "https://arxiv.org/abs/1909.06146 (the reasoning-required setting); prompt: ours",
        "note": "All 1,000 labelled rows; the only split is called train. The authors' own test half is "
        "a list of ids outside the hub data set.",
    },
    # Images.
    "mathvision": {
        "hub": "MathLLMs/MathVision",
        "split": "test",
        "columns": {
            "id": "id",
            "question": "question",
            "gold": "answer",
            "choices": "options",
            "subject": "subject",
            "images": "decoded_image",
        },
        "merged_images": True,  # a row has one picture, the text names up to seven parts of it
        "gold_form": "letter",
        "kind": "math",  # rows with options are multiple choice, the others free answers
        "rows": 3040,
        "licence": "MIT; open access.",
        "source": "https://arxiv.org/abs/2402.14804; prompt: ours",
        "note": "data.split=testmini gives 304 of them. The pictures come with the rows: nothing to unpack. "
        "<image1> in the text stands for the picture; where a text has more such marks they become words.",
    },
    "slake": {
        "hub": "BoKelvin/SLAKE",
        "split": "test",
        "columns": {
            "id": "qid",
            "question": "question",
            "gold": "answer",
            "subject": "content_type",
            "images": "img_name",
        },
        "image_folder": "imgs",
        "where": {"q_lang": "en"},
        "kind": "text",
        "rows": 1061,
        "licence": "CC-BY-4.0; open access.",
        "source": "https://arxiv.org/abs/2102.09542 (English questions); prompt: ours",
        "note": "The images are in imgs.zip: `hf download --repo-type dataset BoKelvin/SLAKE --local-dir slake`, "
        "unpack it there so that slake/imgs/xmlab1/source.jpg exists, and set data.path=slake.",
    },
    "medxpertqa-mm": {
        "hub": "TsinghuaC3I/MedXpertQA",
        "config": "MM",
        "split": "test",
        "columns": {
            "id": "id",
            "question": "question",
            "gold": "label",
            "choices": "options",
            "subject": "medical_task",
            "images": "images",
        },
        "image_folder": "images",
        "cut_after": "\nAnswer Choices:",  # the text repeats the options in its last line
        "gold_form": "letter",
        "kind": "choice",
        "rows": 2000,
        "licence": "MIT; open access.",
        "source": "https://arxiv.org/abs/2501.18362; prompt: ours",
        "note": "The images are in images.zip: `hf download --repo-type dataset TsinghuaC3I/MedXpertQA --local-dir "
        "medxpertqa`, unpack it there so that its files lie in medxpertqa/images, and set data.path=medxpertqa.",
    },
}
