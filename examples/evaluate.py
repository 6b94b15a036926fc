"""Measure a model that is already in memory, before and after, on the same questions."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import spinerl
from spinerl.tiny import model_path

model = AutoModelForCausalLM.from_pretrained(model_path())
tokenizer = AutoTokenizer.from_pretrained(model_path())
keys = {"tokenizer": tokenizer, "data.max_questions": 16}
print(spinerl.preflight(model, "tiny/shift-a", **keys).reason)
before = spinerl.evaluate(model, "tiny/shift-a", samples=2, **keys)
spinerl.adapt(model, "tiny/shift-a", steps=2, questions_per_step=4, guard="off", **keys)  # it learns in place
after = spinerl.evaluate(model, "tiny/shift-a", samples=2, **keys)
for name, found in spinerl.compare(before, after).items():
    print(f"{name}: {found.mean_a:.3f} -> {found.mean_b:.3f}, difference [{found.low:+.3f}, {found.high:+.3f}]")
