"""The verl bridge: verl's own worker, functions and settings with our targets and loss, on the CPU."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from spinerl.answers import Equivalence
from spinerl.bridges.verl_export import export
from spinerl.config import load_config
from spinerl.data import load_data, render_all
from spinerl.errors import InputError, NonFiniteError, RunError
from spinerl.models.loading import load_model
from spinerl.schedule import question_order
from spinerl.step import StepState
from spinerl.types import Question
from tests.bridges.scene import TEXTS, apart, launch, native, write_neighbour
from tests.models import write_model

pytest.importorskip("verl", reason="the bridge needs verl")
pytest.importorskip("transfer_queue", reason="the bridge needs verl's TransferQueue")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bridge = importlib.import_module("spinerl.bridges.verl")

pytestmark = pytest.mark.filterwarnings("ignore")  # of verl's, about its own imports

WORKER = Path(__file__).with_name("verl_worker.py")

COMMON = (
    "steps=1 questions_per_step=3 group_size=8 prompt.instruction= data.order=sequential answer.kind=number "
    "rollout.max_new_tokens=60 rollout.temperature=0.9 optim.micro_batch_rows=4 optim.max_grad_norm=0 guard=off "
    "checkpoint.every=0 model.attention=sdpa model.dtype=float32"
)
CASES = {
    "the batch's forks": "forks.scope=batch band.weight=0.3 anchor.weight=0.2 anchor.scope=all entropy.weight=0.05",
    "squared band": "band.weight=0.3 band.shape=squared anchor.weight=0.2 anchor.estimator=k2",
    "by responses": "band.weight=0.3 loss.normalizer=response advantage.entropy=reshape band.edges=ema",
    "packed by tokens": "band.weight=0.2 anchor.weight=0.1 optim.micro_batch_rows=0 optim.micro_batch_tokens=200",
    "more votes than trained": (
        "group_size=4 rollout.num_votes=8 vote.weights=probability band.weight=0.1 optim.micro_batch_rows=3"
    ),
    "all tokens": "method=ttrl",
    "as printed": (
        "loss.normalizer=response-tokens band.weight_low=0.1 band.weight_high=0.4 anchor.weight=0.2 loss.clip_high=0.3"
    ),
    "second version": "method=spine-v2 band.weight=0.3",
    "leave one out, by prefixes": "method=tempo reward=leave-one-out loss=dr-grpo",
    # One row at a time, and "c" has no label: some passes have nothing to learn from.
    "idle passes": "method=ttrl vote.min_majority_frac=0.45 optim.micro_batch_rows=1",
    "several updates": (
        "method=spine-no-band loss=gspo loss.clip_low=0.1 loss.clip_high=0.1 optim.minibatches=3 optim.epochs=2 "
        "optim.lr=0.02 optim.eps=0.01 optim.weight_decay=0.1 optim.micro_batch_rows=2"
    ),
    "a cispo of three minibatches": "loss=cispo optim.minibatches=3 band.weight=0.3 optim.lr=1e-4 optim.eps=0.01",
}


def opened(config, folder):
    return load_model(config.model.model_copy(update={"name": str(folder)}))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Per case: the native engine's losses and gradients, and verl's on one process and on two."""
    folder = tmp_path_factory.mktemp("verl")
    policy_folder, anchor_folder = write_model("qwen3", folder / "policy"), folder / "anchor"
    rows = [json.dumps({"id": name, "question": text}) for name, text in TEXTS.items()]
    (folder / "questions.jsonl").write_text("\n".join(rows))
    other = opened(load_config(), policy_folder)
    write_neighbour(other, anchor_folder)
    cases, expected = {}, {}
    for number, (name, overrides) in enumerate(CASES.items()):
        overrides = [
            f"model={policy_folder}",
            f"data={folder / 'questions.jsonl'}",
            *COMMON.split(),
            *overrides.split(),
        ]
        config = load_config(overrides=overrides)
        policy, anchor = opened(config, policy_folder), opened(config, anchor_folder)
        data, _ = load_data(config.data, answer_kind=config.answer.kind)
        rendered = render_all(data.questions, policy.tokenizer, config.prompt, kind=config.answer.kind)
        ours = native(config, policy, anchor, rendered.questions, rendered.prompts)
        expected[name] = (ours.votes, ours.losses, ours.gradients, ours.rollout)
        cases[name] = {
            "overrides": overrides,
            "settings": export(config, folder / str(number)).command[3:],
            "anchor": str(anchor_folder),
            "questions": rendered.questions,
            "said": ours.said,
            "end_ids": policy.end_ids,
        }
    torch.save(cases, folder / "cases.pt")
    found = {}
    for world in (1, 2):
        done = launch(world, str(WORKER), str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
        found[world] = torch.load(folder / f"found-{world}.pt", weights_only=False)
    return expected, found


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_verls_worker_has_the_native_engines_loss_and_gradient(compared, name, world):
    expected, found = compared
    _, losses, gradients, _ = expected[name]
    seen = found[world][name]
    assert (seen["world"], seen["kinds"]) == (world, {"DTensor"})
    assert seen["micros"] > len(losses) or world == 2
    assert len(seen["losses"]) == len(losses) == len(seen["gradients"])
    for number, loss in enumerate(losses):
        noted, reported = seen["losses"][number], seen["reported"][number]
        difference = apart(seen["gradients"][number], gradients[number])
        print(f"{name}, {world}, update {number + 1}: loss {abs(noted - loss):.1e}, gradient {difference:.1e}")
        slack = 10 if number else 1  # later updates begin where the rounding of those before left the weights
        assert noted == pytest.approx(loss, rel=1e-5 * slack, abs=1e-6)
        assert reported == pytest.approx(loss, rel=1e-5 * slack, abs=1e-6)
        assert difference < 1e-5 * slack


@pytest.mark.slow
def test_verl_scores_as_the_native_engine_does(compared):
    expected, found = compared
    rollout = expected["the batch's forks"][3]
    for world in (1, 2):
        seen = found[world]["the batch's forks"]
        for row, (logprobs, entropies) in enumerate(zip(seen["logprobs"], seen["entropies"], strict=True)):
            length = int(rollout.mask[row].sum())
            assert len(logprobs) == len(entropies) == length
            assert logprobs == pytest.approx(rollout.logprobs[row, :length].tolist(), abs=2e-5)
            assert entropies == pytest.approx(rollout.entropies[row, :length].tolist(), abs=2e-5)


@pytest.mark.slow
def test_the_vote_sees_groups_whole_whatever_the_order_of_the_rows(compared):
    expected, found = compared
    votes = expected["the batch's forks"][0]
    assert [vote.pseudo_label for vote in votes] == ["5", "7", "1"]
    for world in (1, 2):
        noted = found[world]["the batch's forks"]["metrics"]
        assert noted["label/majority_frac"] == pytest.approx(sum(vote.majority_frac for vote in votes) / 3)
        # 4 of 8 say 5; 4 say 7, one of them unheard as it was cut off; 3 say 1
        assert noted["reward/mean"] == pytest.approx((4 + 4 + 3) / 24)


@pytest.mark.slow
def test_responses_that_only_vote_have_no_weight(compared):
    _, found = compared
    columns = found[1]["more votes than trained"]["columns"]
    for key, own in columns.items():
        trained = int(key.split("_")[1]) < 4
        assert (float(own["spinerl_policy"].sum()) > 0) == trained


# A step through the real trainer and verl's data queue; what learns is verl's worker, tested above.


class Group:
    """In place of verl's group of actors on two ranks: cuts the rows up and fetches them as verl does."""

    def __init__(self):
        self._dispatch_info = {"actor": [0, 1]}
        self.shares = []

    def set_loss_fn(self, loss):
        self.loss = loss

    def update_actor(self, batch):
        from verl.protocol import BatchData
        from verl.utils.transferqueue_utils import _meta_to_realdata

        self.keys = list(batch.keys)
        self.shares = [_meta_to_realdata(part) for part in BatchData(batch).chunk(chunks=2)]
        return {"metrics": {"loss": [0.5], "mfu": [0.1]}}


def tree_of(overrides):
    from hydra import compose, initialize_config_dir

    folder = Path(importlib.import_module("verl.trainer").__file__).parent / "config"
    with initialize_config_dir(config_dir=str(folder), version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


STEP = (
    "model=tiny-reasoner data=tiny/shift-a steps=2 questions_per_step=4 group_size=4 rollout.num_votes=6 "
    "rollout.max_new_tokens=24 optim.minibatches=2 band.weight=0.3 anchor.weight=0.2 anchor.scope=all guard=off"
)


@pytest.fixture
def queue():
    """verl's data queue, on a Ray of two cores."""
    import ray
    import transfer_queue
    from omegaconf import OmegaConf

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, logging_level="ERROR")
    storage = {"total_storage_size": 1000, "num_data_storage_units": 1}
    transfer_queue.init(OmegaConf.create({"backend": {"storage_backend": "SimpleStorage", "SimpleStorage": storage}}))
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


def sampled(trainer, loaded, config, generator):
    """A step's responses as verl's agent loops leave them, with figures of an actor and a reference model."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict
    from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

    asked = trainer._fetch_one_gen_batch()
    builder = ContinuousTokenBuilder(trainer.tokenizer)
    rows, keys, tags = [], [], []
    for place, uid in enumerate(list(asked["uid"])):
        prompt = builder.build_initial_tokens(list(asked["raw_prompt"])[place])
        for number in range(config.num_votes):
            length = int(torch.randint(3, 24, (1,), generator=generator))
            ids = torch.randint(2, 400, (length,), generator=generator)
            ids[-1] = loaded.end_ids[0]
            mask = torch.ones(length, dtype=torch.int64)
            whole = torch.cat([torch.tensor(prompt), ids])
            rows.append(
                {
                    "uid": uid,
                    "extra_info": list(asked["extra_info"])[place],
                    "prompts": torch.tensor(prompt),
                    "responses": ids,
                    "input_ids": whole,
                    "position_ids": torch.arange(len(whole)),
                    "response_mask": mask,
                    "loss_mask": mask,
                    "old_log_probs": -torch.rand(length, generator=generator),
                    "entropy": torch.rand(length, generator=generator),
                    "ref_log_prob": -torch.rand(length, generator=generator),
                    "rm_scores": torch.zeros(length),
                }
            )
            keys.append(f"{uid}_{number}_0")
            tags.append({"seq_len": len(whole)})
    return keys, tags, list_of_dict_to_tensordict(rows)


@pytest.mark.slow
def test_a_step_of_the_trainer(queue, tmp_path):
    from transfer_queue import KVBatchMeta
    from verl.utils import tensordict_utils as tu

    config = load_config(overrides=STEP.split())
    exported = export(config, tmp_path / "job")
    tree = tree_of([*exported.command[3:], "data.dataloader_num_workers=0", "trainer.n_gpus_per_node=2"])
    trainer = bridge.SpineTrainer(tree)
    assert trainer.trainer_mode == "sync"
    trainer._init_tokenizer()
    trainer._init_dataloader()
    trainer.global_steps, trainer.actor_rollout_wg = 1, Group()
    assert trainer.total_training_steps == 2

    loaded = load_model(config.model, config.engine)
    assert trainer._end_ids[-1] == loaded.end_ids[-1]
    keys, tags, rows = sampled(trainer, loaded, config, torch.Generator().manual_seed(0))
    queue.kv_batch_put(keys=keys, fields=rows, tags=tags, partition_id="train")
    mixed = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1)).tolist()
    batch = KVBatchMeta(keys=[keys[i] for i in mixed], tags=[tags[i] for i in mixed], partition_id="train")

    metrics = {}
    batch = trainer._balance_batch(batch, metrics)
    batch = trainer._compute_advantage(batch, metrics)
    whole = trainer._update_actor(batch, metrics)
    assert sorted(whole.keys) == sorted(keys)  # all of them are cleared from the queue afterwards
    assert metrics["rollout/num_responses"] == 24
    assert metrics["actor/loss"] == 0.5
    assert metrics["perf/mfu/actor"] == 0.1

    # The questions of step 1 are those that `spinerl adapt` would ask, their prompts token by token the same.
    data, _ = load_data(trainer.spine.data, answer_kind="auto")
    rendered = render_all(data.questions, loaded.tokenizer, trainer.spine.prompt)
    places = question_order(len(rendered.questions), 4, 1, "shuffled", 0)
    asked = rows["prompts"].unbind()[::6]
    assert [tuple(ids.tolist()) for ids in asked] == [rendered.prompts[place] for place in places]

    # Each rank has half of each update's rows, and the shares' weights sum to 1 over an update.
    group = trainer.actor_rollout_wg
    assert [len(share) for share in group.shares] == [8, 8]
    assert all(int(key.split("_")[1]) < 4 for key in group.keys)
    minibatches = [
        list(tu.make_iterator(share, mini_batch_size=4, epochs=1, seed=0, dataloader_kwargs={"shuffle": False}))
        for share in group.shares
    ]
    for parts in zip(*minibatches, strict=True):
        assert {part["mini_batch_size"] for part in parts} == {8}
        assert len({uid for part in parts for uid in list(part["uid"])}) == 2  # two questions make an update
        for name in ("policy", "anchor", "band"):
            total = sum(float(part[f"spinerl_{name}"].values().sum()) for part in parts)
            assert total == pytest.approx(1, abs=1e-6)
    # The micro-batches of both ranks together have the loss that the columns stand for.
    total = 0.0
    for mini in [mini for own in minibatches for mini in own]:
        for micro in tu.chunk_tensordict(mini, 2):
            tu.assign_non_tensor(micro, dp_size=2)
            output = {
                name: torch.nested.as_nested_tensor(
                    [
                        torch.cat([torch.zeros(len(prompt) - 1), own, torch.zeros(1)])
                        for prompt, own in zip(micro["prompts"].unbind(), micro[column].unbind(), strict=True)
                    ],
                    layout=torch.jagged,
                )
                for name, column in (("log_probs", "old_log_probs"), ("entropy", "entropy"))
            }
            loss, reported = bridge.spine_loss(output, micro, config=trainer.spine)
            assert reported["loss/total"].aggregate() == pytest.approx(float(loss), rel=1e-5)
            total += float(loss) / 2
    samples = bridge.samples_of(keys, queue.kv_batch_get(keys=keys, partition_id="train"))
    assert total == pytest.approx(reference_loss(samples, trainer), rel=1e-5)


def reference_loss(samples, trainer):
    """The loss of a step's two updates from the native terms, at the figures that were sampled."""
    config = trainer.spine
    with Equivalence() as equivalence:
        frozen = bridge.freeze_step(samples, config, trainer.tokenizer, trainer._end_ids, equivalence, 1, StepState())
    by_key = {sample.key: sample for sample in samples}
    total = 0.0
    for keys in frozen.updates:
        for key in keys:
            sample, own = by_key[key], {name: table.double() for name, table in frozen.columns[key].items()}
            old, entropies = (torch.tensor(row, dtype=torch.float64) for row in (sample.old_logprobs, sample.entropies))
            log_ratio = torch.tensor(sample.anchor_logprobs, dtype=torch.float64) - old
            kl = log_ratio.exp() - 1 - log_ratio  # k3
            outside = (entropies - own["spinerl_high"]).clamp(min=0) + (own["spinerl_low"] - entropies).clamp(min=0)
            total -= float((own["spinerl_policy"] * own["advantages"]).sum())  # the ratios are 1
            total += config.anchor.weight * float((own["spinerl_anchor"] * kl).sum())
            total += config.band.weight * float((own["spinerl_band"] * outside).sum())
    return total


@pytest.mark.slow
def test_rows_that_cannot_be_shared_out_stop_the_job(queue, tmp_path):
    from transfer_queue import KVBatchMeta

    config = load_config(overrides=STEP.split())
    exported = export(config, tmp_path / "job")
    trainer = bridge.SpineTrainer(tree_of([*exported.command[3:], "data.dataloader_num_workers=0"]))
    trainer._init_tokenizer()
    trainer._init_dataloader()
    trainer.global_steps, trainer.actor_rollout_wg = 1, Group()
    trainer.actor_rollout_wg._dispatch_info["actor"] = [0, 1, 2, 3, 4]
    keys, tags, rows = sampled(
        trainer, load_model(config.model, config.engine), config, torch.Generator().manual_seed(0)
    )
    queue.kv_batch_put(keys=keys, fields=rows, tags=tags, partition_id="train")
    batch = trainer._balance_batch(KVBatchMeta(keys=keys, tags=tags, partition_id="train"), {})
    assert len(batch) == 60  # verl fills up to a multiple of 5 ranks and of its minibatches
    with pytest.raises(RunError, match="filled the step up with 36 empty responses"):
        trainer._compute_advantage(batch, {})


# What needs neither Ray nor a model.


def test_the_names_are_registered():
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls

    assert get_trainer_cls("spinerl") is bridge.SpineTrainer
    assert issubclass(bridge.SpineTrainer, PPOTrainerSync)
    assert get_policy_loss_fn("spinerl") is bridge.policy_loss
    with pytest.raises(RunError, match=r"trainer\.v1\.trainer_mode=spinerl"):
        bridge.policy_loss(old_log_prob=None)


def test_the_loss_reaches_other_processes_with_its_recipe():
    from ray import cloudpickle

    config = load_config(overrides=["band.weight=0.25"])
    sent = cloudpickle.loads(cloudpickle.dumps(functools.partial(bridge.spine_loss, config=config)))
    assert sent.func is bridge.spine_loss
    assert sent.keywords["config"] == config


def test_verl_loads_the_module_by_the_variable():
    code = (
        "import verl, sys; from verl.trainer.ppo.v1 import get_trainer_cls; print(get_trainer_cls('spinerl').__name__)"
    )
    environment = {**os.environ, "VERL_USE_EXTERNAL_MODULES": "spinerl.bridges.verl"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.splitlines()[-1:] == ["SpineTrainer"], done.stderr[-2000:]


RECIPES = [
    "",
    "anchor.weight=0.1 optim.micro_batch_rows=2 model.dtype=float32 model.attention=sdpa",
    "method=ttrl optim.epochs=2 optim.minibatches=4 optim.max_grad_norm=0 model.attention=flash_attention_2",
    "rollout.sampler=vllm rollout.top_k=20 rollout.top_p=0.9 vllm.memory_frac=0.3 optim.schedule=cosine optim.lr=1e-6",
    "prompt.chat_template='off' checkpoint.every=0 optim.warmup_steps=3",
]


@pytest.mark.parametrize("overrides", RECIPES)
def test_every_setting_is_one_of_verls_own(overrides, tmp_path):
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = load_config(overrides=["data=tiny/shift-a", "guard=off", *overrides.split()])
    settings = export(config, tmp_path / "a job").command[3:]
    new = {word.split("=")[0] for word in settings if word.startswith("+")}
    assert new <= {
        "+trainer.v1.spinerl.recipe",
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES",
        "+actor_rollout_ref.model.override_config.attn_implementation",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision",
        "+actor_rollout_ref.ref.fsdp_config.mixed_precision",
    }
    tree = tree_of(
        [*settings, "trainer.n_gpus_per_node=2", "trainer.nnodes=1"]
    )  # Hydra refuses keys that are not there
    assert need_reference_policy(tree) == (config.anchor.weight > 0)
    assert not need_critic(tree)
    validate_config(tree, need_reference_policy(tree), False)
    reward = get_custom_reward_fn(tree)
    assert reward(data_source="spinerl", solution_str="5", ground_truth="", extra_info={}) == 0.0
    actor = omega_conf_to_dataclass(tree.actor_rollout_ref.actor)
    assert actor.policy_loss.loss_mode == "spinerl"
    assert tuple(actor.optim.betas) == (config.optim.beta1, config.optim.beta2)
    assert actor.optim.override_optimizer_config == {"eps": config.optim.eps}
    assert actor.optim.clip_grad == (config.optim.max_grad_norm or 1e30)
    assert tree.trainer.v1.spinerl.recipe == str(tmp_path / "a job" / "recipe.yaml")
    assert OmegaConf.select(tree, "actor_rollout_ref.rollout.response_length") == config.rollout.max_new_tokens
    recipe = load_config(Path(tree.trainer.v1.spinerl.recipe))
    bridge.check_settings(tree, recipe)


@pytest.mark.parametrize(
    "word",
    [
        "actor_rollout_ref.rollout.n=4",
        "data.train_batch_size=3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=1",
        "actor_rollout_ref.actor.policy_loss.loss_mode=vanilla",
        "actor_rollout_ref.rollout.temperature=0.7",
        "algorithm.filter_groups.enable=true",
        "actor_rollout_ref.actor.strategy=megatron",
    ],
)
def test_settings_that_contradict_the_recipe_are_refused(word, tmp_path):
    config = load_config(overrides=["data=tiny/shift-a", "guard=off"])
    tree = tree_of([*export(config, tmp_path / "job").command[3:], word])
    with pytest.raises(InputError, match=word.split("=")[0].replace(".", r"\.")):
        bridge.SpineTrainer(tree)


def test_a_trainer_without_a_recipe_is_refused(tmp_path):
    config = load_config(overrides=["data=tiny/shift-a", "guard=off"])
    overrides = [word for word in export(config, tmp_path / "job").command[3:] if "spinerl.recipe" not in word]
    with pytest.raises(InputError, match=r"spinerl export verl"):
        bridge.SpineTrainer(tree_of(overrides))


def made(groups=4, responses=6):
    """Samples of so many groups of so many responses."""
    return [
        bridge.Sample(
            f"u{g}_{i}_0",
            Question(str(g), "", answer_kind="number"),
            g,
            f"u{g}",
            i,
            (3,),
            (4, 1),
            (-0.5, -0.1),
            (0.5, 0.1),
            (0, 0),
        )
        for g in range(groups)
        for i in range(responses)
    ]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (made(responses=5), r"\[5\] responses where 6 are to vote"),
        (made()[:-1], r"\[5\] responses where 6 are to vote"),
        (made(groups=3), "3 questions where a step has questions_per_step=4"),
    ],
)
def test_wrong_groups_are_errors(samples, message):
    from spinerl.models.loading import load_tokenizer

    config = load_config(overrides=STEP.split())
    with Equivalence() as equivalence, pytest.raises(RunError, match=message):
        bridge.freeze_step(samples, config, load_tokenizer(config.model), (1,), equivalence, 1, StepState())


def test_rows_are_dealt_rank_by_rank_and_update_by_update():
    lengths = {"a": 3, "b": 5, "c": 2, "d": 1, "e": 9, "f": 7, "g": 4, "h": 6}
    updates = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    # by length d c a b and g h f e: the first rank has every other one of each, then the second
    assert bridge.share_rows(updates, lengths, 2) == ["d", "a", "g", "f", "c", "b", "h", "e"]
    with pytest.raises(RunError, match="4 responses, not a multiple of 3"):
        bridge.share_rows(updates, lengths, 3)


def test_truncation_is_not_taken_for_stale_weights():
    from spinerl.models.loading import load_tokenizer

    overrides = [*STEP.split(), "anchor.weight=0", "rollout.sampler=vllm", "rollout.top_p=0.8"]
    config = load_config(overrides=overrides)
    tokenizer = load_tokenizer(config.model)
    ids = (*tokenizer("= 5", add_special_tokens=False)["input_ids"], 1)

    def frozen(by, *more):
        """A step whose tokens were drawn from distributions that `by` nats of the model's log-probability are off."""
        old = (-0.5,) * len(ids)
        samples = [
            dataclasses.replace(
                sample,
                response=ids,
                old_logprobs=old,
                entropies=(0.5,) * len(ids),
                sampler_logprobs=(-0.5 + by,) * len(ids),
            )
            for sample in made()
        ]
        with Equivalence() as equivalence:
            config = load_config(overrides=[*overrides, *more])
            return bridge.freeze_step(samples, config, tokenizer, (1,), equivalence, 1, StepState()).metrics

    kept = frozen(0.2)  # a kept mass of e^-0.2 = 0.82: top-p may do that
    assert kept["mismatch/logprob_diff"] == pytest.approx(0.0, abs=1e-7)
    assert kept["rollout/truncated_mass"] == pytest.approx(1 - math.exp(-0.2))
    assert frozen(0.3)["mismatch/logprob_diff"] == pytest.approx(0.3 + math.log(0.8))  # not that: log 0.8 = -0.223
    assert frozen(-0.1)["mismatch/logprob_diff"] == pytest.approx(0.1)
    assert frozen(2.0, "rollout.top_k=5")["mismatch/logprob_diff"] == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(RunError, match=r"vllm\.max_mismatch"):
        frozen(0.6)


def test_vllms_account_weighs_the_advantages():
    from spinerl.models.loading import load_tokenizer

    overrides = [*STEP.split(), "anchor.weight=0"]
    plain = load_config(overrides=overrides)
    config = load_config(
        overrides=[*overrides, "rollout.sampler=vllm", "rollout.importance_cap=1.5", "vllm.max_mismatch=1"]
    )
    tokenizer = load_tokenizer(config.model)
    five, six = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("= 5", "= 6"))
    samples = []
    for sample in made():
        ids = (*(five if sample.number % 3 else six), 1)
        old = tuple(-0.1 * (i + 1) for i in range(len(ids)))
        # the first token was likelier to our model by e^1, which the cap holds at 1.5; the others by e^0.2
        theirs = tuple(value - (1.0 if i == 0 else 0.2) for i, value in enumerate(old))
        samples.append(
            dataclasses.replace(
                sample, response=ids, old_logprobs=old, entropies=(0.5,) * len(ids), sampler_logprobs=theirs
            )
        )
    with Equivalence() as equivalence:
        weighed, unweighed = (
            bridge.freeze_step(
                [s if keys is config else dataclasses.replace(s, sampler_logprobs=None) for s in samples],
                *(keys, tokenizer, (1,), equivalence, 1, StepState()),
            )
            for keys in (config, plain)
        )
        strict = load_config(overrides=[*overrides, "rollout.sampler=vllm"])
        with pytest.raises(RunError, match=r"vllm\.max_mismatch=0\.3"):
            bridge.freeze_step(samples, strict, tokenizer, (1,), equivalence, 1, StepState())
    assert "mismatch/logprob_diff" in weighed.metrics
    assert not any(name.startswith("mismatch") for name in unweighed.metrics)
    moved = 0
    for key, own in weighed.columns.items():
        expected = unweighed.columns[key]["advantages"].clone()
        expected[0] *= 1.5
        expected[1:] *= torch.tensor(0.2).exp()
        moved += int(expected.abs().sum() > 0)
        assert own["advantages"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert moved


def columns_of(rows, **changes):
    """verl's columns of such responses."""
    nested = {
        name: torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)
        for name in ("prompts", "responses", "response_mask", "old_log_probs", "entropy")
    }
    info = [{"index": 0, "id": "a", "answer_kind": "number", "choices": []} for _ in rows]
    return nested | {"uid": ["u"] * len(rows), "extra_info": info} | changes


@pytest.mark.parametrize(
    ("keys", "changes", "message"),
    [
        (["u_0_0", "u_0_1"], {}, "several parts"),
        (["u_0_0", "u_1_0"], {"extra_info": [{"index": 0}, {"index": 0}]}, "file of an export"),
        (
            ["u_0_0", "u_1_0"],
            {"response_mask": torch.nested.as_nested_tensor([torch.tensor([1, 0])] * 2, layout=torch.jagged)},
            "single turns",
        ),
    ],
)
def test_what_is_no_single_answer_to_an_exported_question_is_an_error(keys, changes, message):
    with pytest.raises(RunError, match=message):
        bridge.samples_of(keys, columns_of([[1, 2], [1, 2]], **changes))


def test_a_loss_that_is_not_finite_stops_the_job():
    from tensordict import TensorDict

    ids = torch.nested.as_nested_tensor([torch.ones(2, dtype=torch.int64)], layout=torch.jagged)
    ones = torch.nested.as_nested_tensor([torch.ones(2)], layout=torch.jagged)
    fields = {"prompts": ids, "responses": ids, "old_log_probs": ones, "advantages": ones, "spinerl_policy": ones}
    whole = torch.nested.as_nested_tensor([torch.full((4,), torch.nan)], layout=torch.jagged)
    with pytest.raises(NonFiniteError, match=r"optim\.lr"):
        bridge.spine_loss({"log_probs": whole}, TensorDict(fields, batch_size=1), config=load_config())


def test_a_band_without_entropies_is_an_error():
    from tensordict import TensorDict

    ones = torch.nested.as_nested_tensor([torch.ones(2)], layout=torch.jagged)
    ids = torch.nested.as_nested_tensor([torch.ones(2, dtype=torch.int64)], layout=torch.jagged)
    data = TensorDict({"prompts": ids, "responses": ids, "spinerl_band": ones}, batch_size=1)
    whole = torch.nested.as_nested_tensor([torch.ones(4)], layout=torch.jagged)
    with pytest.raises(RunError, match="entropies"):
        bridge.spine_loss({"log_probs": whole}, data, config=load_config())
