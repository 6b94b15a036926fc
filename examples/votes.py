"""Votes over texts from anywhere: no model is needed."""

import spinerl

texts = [r"Half of it, so \boxed{\frac{1}{2}}.", "The answer is 0.5.", r"\boxed{2/4}", r"\boxed{2}", "I do not know."]
found = spinerl.vote(texts, kind="math")
print("answers:", found.answers)
print("classes:", found.classes)
print(f"label: {found.pseudo_label}, {found.majority_frac:.0%} of all responses")
