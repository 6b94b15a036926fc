"""What several tests of comparisons ask the bundled model."""

from __future__ import annotations

import pytest

from spinerl.config import load_config
from spinerl.data import load_data, render_all
from spinerl.models.loading import load_model


@pytest.fixture(scope="module")
def asked():
    """(model, questions, prompts): the first three of tiny/shift-a."""
    config = load_config(overrides=["data=tiny/shift-a", "data.max_questions=3"])
    loaded = load_model(config.model, config.engine)
    questions, _ = load_data(config.data)
    found = render_all(questions.questions, loaded.tokenizer, config.prompt)
    return loaded, found.questions, found.prompts
