"""Which values of a configuration are paths, and the configuration with all of them absolute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spinerl.config import STANDARD_INPUT, Config, DataConfig, describe_keys
from spinerl.data.definitions import definition_of, suite_of
from spinerl.tiny import MODELS

__all__ = ["absolute_paths"]


def absolute_paths(config: Config) -> Config:
    """The configuration with absolute paths in place of relative ones, so that it means the same in any folder.

    Of `model`, `steer` and `data` what names a file or folder that is there; data.path, data.gold, data.image_folder;
    and files of functions (`FILE.py:function`).  Names of models, data sets and modules stay, and so does `run`.
    """
    data = config.data
    changed: dict[str, Any] = {}
    if (name := _model_place(config.model.name)) != config.model.name:
        changed["model"] = config.model.model_copy(update={"name": name})
    steer = {key: _model_place(getattr(config.steer, key)) for key in ("adapted", "base")}
    if steer != {key: getattr(config.steer, key) for key in steer}:
        changed["steer"] = config.steer.model_copy(update=steer)
    update: dict[str, Any] = {key: os.path.abspath(value) for key in ("path", "gold", "image_folder")
                              if (value := getattr(data, key)) is not None}  # fmt: skip
    update |= {key: os.path.abspath(value) for key in ("name", "target")
               if (value := getattr(data, key)) is not None and _is_place(value)}  # fmt: skip
    if update:
        changed["data"] = data.model_copy(update=update)
    for key, *_, description in describe_keys(unlisted=True):
        if "module:function" in description:
            _make_absolute(config, key, changed)
    return config.model_copy(update=changed) if changed else config


def _make_absolute(config: Config, key: str, changed: dict[str, Any]) -> None:
    """Add the section of a function's key to `changed` where the function is one of a file."""
    section, _, name = key.rpartition(".")
    owner = changed.get(section, getattr(config, section) if section else config)
    value = getattr(owner, name)
    absolute = [_absolute(one) for one in value] if isinstance(value, list) else _absolute(value)
    if absolute == value:
        return
    if section:
        changed[section] = owner.model_copy(update={name: absolute})
    else:
        changed[name] = absolute


def _absolute(value: Any) -> Any:
    file, colon, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return f"{os.path.abspath(file)}:{function}" if colon and file.endswith(".py") else value


def _model_place(name: str | None) -> str | None:
    """The absolute path of a model that is there as a file or folder; any other name as it is."""
    if name is None or name in MODELS:
        return name
    place = os.path.expanduser(name)
    return os.path.abspath(place) if os.path.exists(place) else name


def _is_place(name: str) -> bool:
    """Whether a data set's name is the path of something that is there, and not that of a known data set."""
    if suite_of(name) is not None or name == STANDARD_INPUT or not os.path.exists(name):
        return False
    if Path(name).suffix.lower() in (".yaml", ".yml", ".json"):
        return True
    return definition_of(DataConfig(name=name)) is None
