"""What a process of verl's equality test does: `python verl_worker.py FOLDER` or torchrun with several of them.

Reads FOLDER/cases.pt and writes FOLDER/found-N.pt, N being the number of processes: for each case the loss and the
gradients of each optimizer update as verl's own worker has them, its model sharded by FSDP2 on the CPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import verl.trainer
from hydra import compose, initialize_config_dir
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import set_platform
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import response_from_nested

from spinerl.answers import Equivalence
from spinerl.bridges.verl import Sample, freeze_step, share_rows, spine_loss
from spinerl.config import load_config
from spinerl.step import StepState


class Module:
    """Answers what is asked of an accelerator's module."""

    def get_device_name(self):
        return "CPU"

    def mem_get_info(self, *_):
        return 1, 1

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: 0


class Cpu(PlatformCUDA):
    """A CPU as one of verl's platforms, which has none."""

    device_name = "cpu"
    device_module = Module()

    def is_available(self):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def communication_backend_name(self):
        return "gloo"

    def empty_cache(self):
        pass


set_platform(Cpu())
EngineRegistry.register("language_model", ["fsdp", "fsdp2"], "cpu")(FSDPEngineWithLMHead)
ON_CPU = (
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
    "trainer.n_gpus_per_node=1",
)


def settings(overrides):
    """verl's tree of settings with these overrides merged into it."""
    folder = Path(verl.trainer.__file__).parent / "config"
    with initialize_config_dir(config_dir=str(folder), version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def worker_of(tree, model_path=None):
    """verl's worker around an actor, made from the settings as its hybrid worker makes it, less the rollout."""
    ref = tree.actor_rollout_ref
    if model_path:
        ref.model.path = model_path
    model = omega_conf_to_dataclass(ref.model)
    actor = omega_conf_to_dataclass(ref.actor)
    engine = actor.engine
    engine.use_dynamic_bsz = ref.actor.use_dynamic_bsz
    engine.infer_max_token_len_per_gpu = ref.rollout.log_prob_max_token_len_per_gpu
    engine.infer_micro_batch_size_per_gpu = ref.rollout.log_prob_micro_batch_size_per_gpu
    engine.max_token_len_per_gpu = ref.actor.ppo_max_token_len_per_gpu
    engine.micro_batch_size_per_gpu = ref.actor.ppo_micro_batch_size_per_gpu
    actor.optim.total_training_steps = tree.trainer.total_training_steps
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=model,
        engine_config=engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    worker = TrainingWorker(config=config)
    worker.reset()
    return worker


def rows_of(case):
    """The responses as verl's agent loop lays them down."""
    rows = []
    for prompt, response in case["said"]:
        ids = torch.tensor([*prompt, *response])
        mask = torch.ones(len(response), dtype=torch.int64)
        rows.append(
            {
                "prompts": torch.tensor(prompt),
                "responses": torch.tensor(response),
                "input_ids": ids,
                "position_ids": torch.arange(len(ids)),
                "response_mask": mask,
                "loss_mask": mask,
            }
        )
    return rows


def score(worker, rows, temperature):
    data = list_of_dict_to_tensordict(rows)
    tu.assign_non_tensor(data, temperature=temperature, calculate_entropy=True, compute_loss=False)
    found = worker.infer_batch(data)
    mask = data["response_mask"]
    return [
        [row.tolist() for row in response_from_nested(found[name], mask).unbind()] for name in ("log_probs", "entropy")
    ]


def run(case):
    config = load_config(overrides=case["overrides"])
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    tree = settings([*case["settings"], *ON_CPU])
    worker = worker_of(tree)
    rows = rows_of(case)
    logprobs, entropies = score(worker, rows, config.rollout.temperature)
    anchored = [None] * len(rows)
    if config.anchor.weight:
        anchored, _ = score(
            worker_of(settings([*case["settings"], *ON_CPU]), case["anchor"]), rows, config.rollout.temperature
        )
    n = config.num_votes
    samples = [
        Sample(
            f"g{row // n}_{row % n}_0",
            case["questions"][row // n],
            row // n,
            f"g{row // n}",
            row % n,
            prompt,
            tuple(response),
            logprobs[row],
            entropies[row],
            anchored[row],
        )
        for row, (prompt, response) in enumerate(case["said"])
    ]
    mixed = [samples[row] for row in torch.randperm(len(samples), generator=torch.Generator().manual_seed(3)).tolist()]
    with Equivalence() as equivalence:
        frozen = freeze_step(mixed, config, worker.model_config.tokenizer, case["end_ids"], equivalence, 1, StepState())
    lengths = {sample.key: len(sample.prompt) + len(sample.response) for sample in samples}
    keys = share_rows(frozen.updates, lengths, world)
    mine = keys[rank * len(keys) // world : (rank + 1) * len(keys) // world]
    place = {sample.key: row for row, sample in enumerate(samples)}
    learned = []
    for key in mine:
        row = place[key]
        anchor = {} if anchored[row] is None else {"ref_log_prob": torch.tensor(anchored[row])}
        learned.append({**rows[row], "old_log_probs": torch.tensor(logprobs[row]), **anchor, **frozen.columns[key]})
    data = list_of_dict_to_tensordict(learned)
    per_update = len(keys) // len(frozen.updates)
    tu.assign_non_tensor(
        data,
        calculate_entropy=config.band.weight != 0 or config.entropy.weight != 0,
        global_batch_size=per_update,
        mini_batch_size=per_update,
        epochs=tree.actor_rollout_ref.actor.ppo_epochs,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        temperature=config.rollout.temperature,
    )
    gradients, micros = [], []
    step = worker.engine.optimizer_step

    def recorded():
        gradients.append({name: p.grad.full_tensor().clone() for name, p in worker.engine.module.named_parameters()})
        return step()

    def counted(*args, **kwargs):
        micros.append(1)
        return spine_loss(*args, config=config, **kwargs)

    worker.engine.optimizer_step = recorded
    worker.set_loss_fn(counted)
    output = worker.train_mini_batch(data)
    metrics = tu.get(output, "metrics")
    return {
        "world": world,
        "kinds": {type(p).__name__ for p in worker.engine.module.parameters()},
        "micros": len(micros),
        "losses": metrics["loss/total"],
        "reported": metrics["loss"],
        "gradients": gradients,
        "logprobs": logprobs,
        "entropies": entropies,
        "metrics": dict(frozen.metrics),
        "columns": frozen.columns,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    cases = torch.load(folder / "cases.pt", weights_only=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}.items():
        os.environ.setdefault(name, value)
    torch.distributed.init_process_group("gloo")
    found = {name: run(case) for name, case in cases.items()}
    world = torch.distributed.get_world_size()
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / f"found-{world}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
