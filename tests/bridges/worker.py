"""What a process of the equality test does: `python worker.py FOLDER` or torchrun with several of them.

Reads FOLDER/cases.pt and writes FOLDER/found-N.pt, N being the number of processes: for each case the loss and the
gradients of each optimizer update as the bridge has them, and, in several processes, as sharded weights have them.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from torch.distributed.fsdp import fully_shard
from trl.trainer.utils import add_fused_lm_head

from spinerl.bridges.trl import SpineTrainer, deal_rows, micro_loss, training_arguments
from spinerl.config import load_config
from spinerl.engine.update import Terms, wanted_tokens, weigh_terms
from spinerl.models.loading import load_model
from tests.models import compute_norms_in_float64


def opened(config, name, dtype):
    model = load_model(config.model.model_copy(update={"name": name})).model.to(dtype)
    if dtype == torch.float64:
        compute_norms_in_float64(model)
    return model


class Injected(SpineTrainer):
    """Says what it is given, and writes down every gradient before it is used."""

    def _generate_single_turn(self, prompt_ids, *_args, **_kwargs):
        first = self.accelerator.process_index * len(prompt_ids)
        seen = [self.said[first + i] for i in range(len(prompt_ids))]
        assert [list(prompt) for prompt, _ in seen] == prompt_ids
        self.local_rows = len(prompt_ids)
        return [list(response) for _, response in seen], None

    def _get_grad_norm(self, model, grad_norm=None):
        plain = self.accelerator.unwrap_model(model)
        self.gradients.append({name: p.grad.clone() for name, p in plain.named_parameters()})
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            self.figures = {name: values[-1] for name, values in self._metrics["train"].items()} | self.figures
            self.losses.append((logs["loss"], self._metrics["train"]["loss/total"][-1]))
        super().log(logs, start_time)


def bridge(case, folder):
    config = load_config(overrides=case["overrides"])
    tokenizer = load_model(config.model, config.engine).tokenizer
    longest = max(map(len, case["prompts"]))
    args = training_arguments(config, num_questions=len(case["questions"]), longest_prompt=longest)
    args.output_dir = folder
    trainer = Injected(
        opened(config, case["model"], case["dtype"]), args, case["questions"], case["prompts"], tokenizer
    )
    trainer.said, trainer.gradients, trainer.losses = case["said"], [], []
    trainer.figures = {}
    if trainer.ref_model is not None:
        reference = trainer.accelerator.unwrap_model(trainer.ref_model).to(case["dtype"])
        if case["dtype"] == torch.float64:
            compute_norms_in_float64(reference)
        reference.load_state_dict(opened(config, case["anchor"], case["dtype"]).state_dict())
    trainer.train()
    return {
        "world": trainer.accelerator.num_processes,
        "wrapped": type(trainer.model_wrapped).__name__,
        "micros": args.gradient_accumulation_steps,
        "local_rows": trainer.local_rows,
        "per_device": args.per_device_train_batch_size,
        "figures": trainer.figures,
        "losses": trainer.losses,
        "gradients": trainer.gradients,
    }


def sharded(case):
    """The first update with weights sharded by FSDP2, no trainer around."""
    config, batch, targets = load_config(overrides=case["overrides"]), case["batch"], case["targets"]
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = opened(config, case["model"], case["dtype"])
    add_fused_lm_head(model, temperature=batch.temperature, outputs=("log_probs", "entropy"))
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    weights = weigh_terms(targets, batch.mask, torch.ones(len(batch.tokens), 1, dtype=torch.bool), config)
    terms, wanted = Terms(config, batch, targets, weights, None), wanted_tokens(targets, weights)
    micros = deal_rows(torch.arange(len(batch.tokens)), batch, world, case["parts"])[rank]
    total = torch.zeros((), dtype=case["dtype"])
    for rows in micros:
        loss = micro_loss(model, terms, batch, wanted, rows, whole=case["dtype"] == torch.float64) * world
        loss.backward()
        total += loss.detach() / world
    torch.distributed.all_reduce(total)
    gradients = {name: p.grad.full_tensor().clone() for name, p in model.named_parameters()}
    kinds = {type(p).__name__ for p in model.parameters()}
    return {"world": world, "kinds": kinds, "micros": len(micros), "loss": float(total), "gradients": gradients}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = torch.load(folder / "cases.pt", weights_only=False)
    found: dict = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in cases.items():
            found[name] = {"bridge": bridge(case, scratch)}
    if torch.distributed.is_initialized():
        for name, case in cases.items():
            if case["parts"]:
                found[name]["sharded"] = sharded(case)
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if world == 1 or torch.distributed.get_rank() == 0:
        torch.save(found, folder / f"found-{world}.pt")
    if torch.distributed.is_initialized():
        gc.collect()  # what wraps models goes before the process group (`spinerl.bridges.trl.main`)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
