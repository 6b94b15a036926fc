"""`spinerl export verl`: what is written, without verl."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spinerl import cli
from spinerl.bridges import verl_export
from spinerl.bridges.verl_export import check_config, export, no_reward
from spinerl.config import load_config
from spinerl.data import load_data, render_all
from spinerl.errors import InputError
from spinerl.methods import METHODS
from spinerl.models.loading import load_tokenizer
from spinerl.schedule import question_order

ROOT = Path(__file__).parents[2]
SMALL = "data=tiny/shift-a data.max_questions=6 steps=3 questions_per_step=2 guard=off"


def exported(folder, *overrides):
    config = load_config(overrides=[*SMALL.split(), *overrides])
    return config, export(config, folder)


def settings_of(job):
    return dict(word.split("=", 1) for word in job.command[3:])


def test_the_questions_of_each_step_in_order_and_no_gold(tmp_path):
    config, job = exported(tmp_path / "job")
    rows = pq.read_table(job.folder / "questions.parquet").to_pylist()
    data, gold = load_data(config.data)
    assert len(gold) == 6
    order = [place for step in (1, 2, 3) for place in question_order(6, 2, step, "shuffled", 0)]
    assert [row["extra_info"]["index"] for row in rows] == order
    assert [row["extra_info"]["id"] for row in rows] == [data.questions[place].id for place in order]
    for row in rows:
        assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
        assert row["reward_model"] == {"style": "rule", "ground_truth": ""}
        assert gold[row["extra_info"]["id"]] not in json.dumps(row["reward_model"])
    assert job.num_questions == 6


@pytest.mark.parametrize(
    "overrides",
    [
        ("prompt.instruction=Put the sum in a box.",),
        ("prompt.system=Be brief.", "prompt.instruction=null"),
        ("prompt.examples=[{question: 'One and one?', answer: '2'}]",),
        ("prompt.chat_template='off'", "prompt.instruction=null"),
    ],
)
@pytest.mark.parametrize("model", ["tiny-reasoner", "qwen2"])
def test_the_messages_give_our_prompts_token_by_token(overrides, model, tmp_path, model_folders):
    name = model if model == "tiny-reasoner" else str(model_folders(model))
    config, job = exported(tmp_path / "job", f"model={name}", *overrides)
    tokenizer = load_tokenizer(config.model)
    data, _ = load_data(config.data)
    prompts = render_all(data.questions, tokenizer, config.prompt).prompts
    template = settings_of(job).get("actor_rollout_ref.model.custom_chat_template")
    if template is not None:
        tokenizer.chat_template = json.loads(template)
    for row in pq.read_table(job.folder / "questions.parquet").to_pylist():
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False)
        assert tuple(ids) == prompts[row["extra_info"]["index"]]
    assert settings_of(job)["data.max_prompt_length"] == str(max(map(len, prompts)))


def test_a_plain_prompt_that_begins_with_a_token_of_its_own(tmp_path, model_folders):
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path / "model"
    tokenizer = load_tokenizer(load_config(overrides=[f"model={model_folders('qwen2')}"]).model)
    tokenizer.bos_token = "<|system|>"
    begin = [("<|system|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|system|> $A", special_tokens=begin)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((Path(model_folders("qwen2")) / "config.json").read_text())
    _, job = exported(tmp_path / "job", f"model={folder}")
    assert "{{ bos_token }}" in settings_of(job)["actor_rollout_ref.model.custom_chat_template"]


def test_options_of_the_template_go_along_or_are_refused(tmp_path, model_folders):
    name = f"model={model_folders('qwen2')}"
    _, job = exported(tmp_path / "job", name, "prompt.template_options={enable_thinking: false}")
    assert settings_of(job)["+data.apply_chat_template_kwargs.enable_thinking"] == "false"
    with pytest.raises(InputError, match=r"prompt\.template_options"):
        exported(tmp_path / "other", name, "prompt.template_options={add_generation_prompt: false}")


def test_the_recipe_comes_back_as_it_was(tmp_path):
    config, job = exported(tmp_path / "job", "band.weight=0.3", "questions_per_step=50")
    again = load_config(job.folder / "recipe.yaml")
    check_config(again)
    assert again.questions_per_step == 6  # as many as there are
    assert Path(again.model.name).is_absolute()
    unlike = {"model": config.model, "questions_per_step": config.questions_per_step, "guard": config.guard}
    assert again.model_copy(update=unlike) == config
    assert export(again, tmp_path / "again").command[7:] != ()


def test_the_settings_follow_the_keys(tmp_path):
    _, job = exported(
        tmp_path / "job",
        *("optim.lr=2e-6", "optim.minibatches=2", "optim.epochs=3", "optim.micro_batch_rows=2", "anchor.weight=0.1"),
        *("rollout.num_votes=32", "rollout.top_k=5", "rollout.max_new_tokens=99", "checkpoint.every=0", "seed=7"),
        *("model.dtype=float32", "model.attention=sdpa", "optim.max_grad_norm=0"),
    )
    seen = settings_of(job)
    assert job.command[:3] == ("python", "-m", "verl.trainer.main_ppo")
    for key, value in {
        "trainer.v1.trainer_mode": "spinerl",
        "data.train_batch_size": "2",
        "actor_rollout_ref.actor.ppo_mini_batch_size": "1",
        "actor_rollout_ref.actor.ppo_epochs": "3",
        "actor_rollout_ref.actor.optim.lr": "2e-06",
        "actor_rollout_ref.actor.optim.clip_grad": "1e+30",
        "actor_rollout_ref.actor.use_kl_loss": "true",
        "actor_rollout_ref.actor.use_dynamic_bsz": "false",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": "2",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": "2",
        "actor_rollout_ref.rollout.n": "32",
        "actor_rollout_ref.rollout.top_k": "5",
        "actor_rollout_ref.rollout.seed": "7",
        "actor_rollout_ref.rollout.dtype": "float32",
        "actor_rollout_ref.model.use_remove_padding": "false",
        "data.max_response_length": "99",
        "trainer.total_training_steps": "3",
        "trainer.save_freq": "3",
    }.items():
        assert seen[key] == value, key


def test_the_script_runs_the_command_with_further_words(tmp_path):
    _, job = exported(tmp_path / "a job's")
    script = (job.folder / "run.sh").read_text()
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done; echo "$VERL_USE_EXTERNAL_MODULES"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", str(job.folder / "run.sh"), "trainer.logger=[x]"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{fake.parent}:/usr/bin:/bin", "GPUS": "2"},
    )
    machines = ["trainer.n_gpus_per_node=2", "trainer.nnodes=1", "trainer.logger=[x]"]
    assert done.stdout.splitlines() == [*job.command[1:], *machines, "spinerl.bridges.verl"]
    assert "GPUS=8 NODES=1" in script


REFUSED = {
    "rollout.stop=[x]": "rollout.stop",
    "rollout.min_p=0.1": "rollout.min_p",
    "tree.bases=-1 tree.forks=1 group_size=4": "tree.bases",
    "stream.on=true": "stream.on",
    "guard=stop": "guard.mode",
    "eval.every=5": "eval.every",
    "log.sample_every=1": "log.sample_every",
    "optim.head_chunk=7": "optim.head_chunk",
    "model.revision=main": "model.revision",
    "model.device=cpu": "model.device",
    "lora.rank=4": "lora.rank",
    "vllm.url=http://localhost": "vllm.url",
    "threads=2": "threads",
    "run=here": "--out",
    "data.order=easy-to-hard": "data.order",
    "anchor.weight=0.1 anchor.estimator=exact": "anchor.estimator",
    "band.edges=initial": "band.edges",
    "optim.epochs=2 optim.warmup_steps=3": "optim.warmup_steps",
    "optim.minibatches=2 optim.schedule=cosine": "optim.schedule",
    "questions_per_step=3 optim.minibatches=2": "optim.minibatches",
    "method=grpo-gold": "reward",
    "method=evol": "reward",
    "method=cat": "reward",
    "method=none": "steps",
    "reward=majorty": "majority",
    "vote.memory=sum": "vote.memory",
    "vote.views=[reread]": "vote.views",
    "vote.weights=margin": "margins",
    "method=scpo": "loss.form=dpo",
    "anchor.fisher=1": "anchor.fisher",
    "model=tiny-vlm": "images",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_be_honoured_is_refused_in_one_line(overrides, tmp_path, capsys):
    given = (
        [word for word in SMALL.split() if word.split("=")[0] not in overrides]
        if "method=none" in overrides
        else [word for word in SMALL.split() if word != "guard=off" or "guard" not in overrides]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "verl", *given, *overrides.split(), "--out", str(tmp_path / "job")])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith("spinerl: ")
    assert printed.count("\n") == 1
    assert REFUSED[overrides] in printed
    assert not (tmp_path / "job").exists()


def test_every_method_is_either_honoured_or_refused():
    refused = set()
    for name in METHODS:
        try:
            check_config(load_config(overrides=[f"method={name}"]))
        except InputError:
            refused.add(name)
    fine_tuning = {"lmsi", "sealong", "roirl", "upft"}  # they reuse responses
    others = {"ettrl-etmr", "evol", "self-certainty", "cat", "grpo-gold", "none", "spine-memory", "ttc-rl"}
    others |= {"self-harmony", "permuted-ttrl", "compass", "scope", "co-rewarding-ii", "petal", "exploration", "bitta"}
    others |= {"scpo", "eata-fisher", "ttadapt", "tt-si", "self-calibration"}
    assert refused == others | fine_tuning


def test_adapters_are_to_be_merged_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny-reasoner"}')
    with pytest.raises(InputError, match="spinerl merge"):
        exported(tmp_path / "job", f"model={tmp_path}")


def test_a_folder_that_is_not_empty_is_not_touched_unless_it_is_an_export(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    config = load_config(overrides=SMALL.split())
    for overwrite in (False, True):
        with pytest.raises(InputError, match=f"--out {tmp_path}"):
            export(config, tmp_path, overwrite=overwrite)
    assert (tmp_path / "kept.txt").read_text() == "mine"
    job = tmp_path / "job"
    export(config, job)
    (job / "checkpoints").mkdir()
    with pytest.raises(InputError, match="--overwrite"):
        export(config, job)
    export(config, job, overwrite=True)
    assert sorted(file.name for file in job.iterdir()) == ["questions.parquet", "recipe.yaml", "run.sh"]


def test_the_command_says_what_it_wrote_and_that_nothing_was_run(tmp_path, capsys):
    cli.app(["export", "verl", "configs/demo.yaml", "steps=2", "--out", str(tmp_path / "job")], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "python -m verl.trainer.main_ppo trainer.use_v1=true" in printed
    assert "Nothing has been run" in printed
    assert "without a guard" in printed
    assert "does not sample this model" in printed  # the bundled one
    assert f"GPUS=8 NODES=1 sh {tmp_path / 'job' / 'run.sh'}" in " ".join(printed.split())


def test_words_are_in_hydras_grammar():
    quoted = {
        'say "so"': '"say \\"so\\""',
        "true": '"true"',
        "5": '"5"',
        "": '""',
        "a\\": '"a\\\\"',
        "a/b-c.d": "a/b-c.d",
    }
    for text, word in quoted.items():
        assert verl_export._hydra(text) == word
    assert shlex.split(shlex.quote(verl_export._hydra({"a": [1, None]}))) == ["{a:[1,null]}"]


def test_no_reward_is_given_response_by_response():
    assert no_reward(data_source="spinerl", solution_str="5", ground_truth="", extra_info={}) == 0.0


def without_verl(code: str) -> subprocess.CompletedProcess[str]:
    lines = "import sys; sys.modules['verl'] = None; " + code
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False, cwd=ROOT)


def test_without_verl_only_the_bridge_is_missing():
    done = without_verl("import spinerl.bridges.verl_export; import spinerl.bridges.verl")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("spinerl.errors.MissingExtraError: verl is not installed")
