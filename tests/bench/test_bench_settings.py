"""What settings `spinerl bench` accepts, and how it refuses the rest."""

from __future__ import annotations

import pytest

from spinerl.bench.settings import PARTS, Settings, load_settings
from spinerl.cli import main
from spinerl.errors import InputError


def test_the_default_is_all_but_scaling():
    assert load_settings().parts == tuple(part for part in PARTS if part != "scaling")


def test_parts_are_a_list_a_word_or_all():
    assert load_settings(["parts=all"]).parts == PARTS
    assert load_settings(["parts=[update,step]"]).parts == ("step", "update")
    assert load_settings(["parts=rollout"]).parts == ("rollout",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["repeat=3"], 'unknown key repeat (did you mean "repeats"?); allowed: parts, '),
        (["repeats=0"], "repeats=0: input should be greater than or equal to 1"),
        (["parts=rollouts"], "allowed: step, rollout, update, sharing, images, efficiency, scaling, all"),
        (["parts=rollouts"], '(did you mean "rollout"?)'),
        (["dtype=int8"], "dtype='int8': input should be 'auto', 'float32', 'bfloat16' or 'mixed'"),
        (["questions"], "'questions' is not key=value"),
        (["heads=3", "kv_heads=2"], "kv_heads=2 must divide heads=3"),
        (["parts=scaling", "out=no/such"], "out=no/such: no such folder"),
        (["trl_rows=3"], "trl_rows=3 must divide the 128 responses of a step"),
    ],
)
def test_wrong_words_are_refused_in_a_line(overrides, message):
    with pytest.raises(InputError) as caught:
        load_settings(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_refuses_in_a_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "group_sise=4"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith('spinerl: unknown key group_sise (did you mean "group_size"?)')
    assert said.count("\n") == 1


def test_every_key_is_explained():
    assert all(field.description for field in Settings.model_fields.values())
