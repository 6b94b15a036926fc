"""Opening the model that a configuration names, with what steers it (`steer.*`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spinerl.config import Config, ModelConfig
from spinerl.errors import InputError
from spinerl.models.loading import LoadedModel, Steering, fingerprint, load_model
from spinerl.runs import RunFolder

__all__ = ["fingerprint_of", "open_model"]


def open_model(config: Config) -> LoadedModel:
    """The model, and where `steer.adapted` names one, the adapted and the base model whose difference moves its logits.

    These two compute as the model does (model.dtype, device), never in 4 bits.

    Raises InputError as `load_model`, for an adapted model whose base is not known, and for models whose vocabularies
    differ, or that do not all see images.
    """
    loaded = load_model(config.model, config.engine)
    steer = config.steer
    if steer.adapted is None:
        return loaded
    adapted = config.model.model_copy(update={"name": steer.adapted, "revision": None, "quantize": "none"})
    named = _base(config, adapted)
    both = [load_model(one, config.engine) for one in (adapted, named)]
    for key, one in zip(("adapted", "base"), both, strict=True):
        _check_alike(loaded, one, f"steer.{key}={(adapted if key == 'adapted' else named).name}", config.model.name)
    return replace(loaded, steering=Steering(*both, weight=steer.weight))


def fingerprint_of(loaded: LoadedModel) -> str:
    """A hash of every weight, those of the models that steer it included."""
    own = fingerprint(loaded.model)
    if loaded.steering is None:
        return own
    return "-".join([own, *(fingerprint(one.model) for one in loaded.steering.models), f"{loaded.steering.weight:g}"])


def _base(config: Config, adapted: ModelConfig) -> ModelConfig:
    steer = config.steer
    if steer.base is not None:
        return adapted.model_copy(update={"name": steer.base})
    folder = Path(adapted.name).expanduser()
    run = next((one for one in (folder, folder.parent) if (one / "config.yaml").is_file()), None)
    if run is None:
        raise InputError(
            f"steer.adapted={steer.adapted} is no run, so the model that it was adapted from is not known: name that "
            "with steer.base"
        )
    found = RunFolder(run).config.model
    return adapted.model_copy(update={"name": found.name, "revision": found.revision})


def _check_alike(loaded: LoadedModel, other: LoadedModel, named: str, name: str) -> None:
    if other.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise InputError(f"{named} has another vocabulary than model={name}: logits are added token by token")
    own, its = (getattr(one.model.config, "model_type", None) if one.vision else None for one in (loaded, other))
    if own != its:
        raise InputError(f"{named} and model={name} do not see images in the same way ({its} and {own})")
