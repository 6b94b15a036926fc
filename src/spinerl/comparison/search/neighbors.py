"""TestNUC and LAME: where all questions share their labels, similar questions decide together.

Rules: `spinerl.answers.neighbors`.  Nothing more is sampled: similarities are cosines of the unadapted model's last
hidden states at the end of each prompt, a pass over the prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from spinerl.answers import lame_labels, nearest, neighbor_labels
from spinerl.comparison.search.records import Searched
from spinerl.engine.update import predicting_states
from spinerl.types import Batch, Question

__all__ = ["share_labels", "together"]


def share_labels(questions: Sequence[Question]) -> bool:
    """Whether an answer means the same in every question: all are of yes or no, or choose from one list of options."""
    if not questions:
        return False
    if all(question.answer_kind == "yesno" for question in questions):
        return True
    options = {question.choices for question in questions}
    return len(options) == 1 and options != {()} and all(not question.letters for question in questions)


def together(search: Searched, num: int) -> tuple[list[str | None], list[str | None]]:
    """(TestNUC's labels, LAME's) from each question's saved responses and those of its `num` nearest neighbors."""
    tokens = torch.full((len(search.prompts), 1), search.loaded.pad_id)
    batch = Batch(tuple(search.prompts), tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    states, _, _ = predicting_states(search.loaded, batch, batch.mask, search.config.optim)
    units = torch.nn.functional.normalize(states.double(), dim=1)
    near = nearest((units @ units.T).tolist(), num)
    shares = [
        {label: count / len(answers) for label, count in Counter(a for a in answers if a is not None).items()}
        for answers in search.answers
    ]
    return neighbor_labels(shares, near), lame_labels(shares, near)
