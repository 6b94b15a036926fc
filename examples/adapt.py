"""Adapt a model to questions without answers."""

import json

import spinerl
from spinerl.tiny import suite_path

questions = [json.loads(line)["question"] for line in suite_path("shift-a").open()][:16]  # any list of texts
run = spinerl.adapt("tiny-reasoner", questions, method="spine", steps=2, questions_per_step=4, run="mine")
print(run.guard["text"])
print("majority fraction:", [round(row["label/majority_frac"], 2) for row in run.metrics])
print("labels:", {row["id"]: row["label"] for row in run.labels})
ids = run.tokenizer(questions[0], return_tensors="pt")
print(run.tokenizer.decode(run.model.generate(**ids, max_new_tokens=40)[0]))
print("report:", run.folder / "report.html")
