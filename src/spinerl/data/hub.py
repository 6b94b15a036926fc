"""The one file that imports `datasets`: hub data sets and local folders of them, as plain rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spinerl import hub
from spinerl.errors import InputError, did_you_mean, reason_of

__all__ = ["open_folder", "open_hub"]


def open_hub(name: str, config: str | None, split: str | None, note: str = "") -> Any:
    """The split of a hub data set, by default `test`, as a `datasets.Dataset`; cached copies serve offline.

    Raises InputError in one line when the hub is out of reach (naming data.path), the data set is gated or
    unknown, or it lacks the configuration or the split.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    wanted = split or "test"
    local = "for a copy on this machine set data.path=FOLDER"
    try:
        with hub.one_try():
            return datasets.load_dataset(name, config, split=wanted)
    except DatasetNotFoundError as error:
        text = reason_of(error)
        if "gated" in text.lower():
            hint = "accept its conditions on its hub page, then log in with `hf auth login`"
            raise InputError(f"hub data set {name} is gated: {hint}; {local}{_also(note)}") from None
        raise InputError(f"hub data set {name} cannot be found ({text}); {local}{_also(note)}") from None
    except (ConnectionError, TimeoutError):
        why = f"{hub.why_away() or 'no connection to the hub'}, and no copy in the cache"
        raise InputError(f"hub data set {name} is out of reach: {why}; {local}{_also(note)}") from None
    except (ValueError, RuntimeError, OSError) as error:
        key = "data.config" if "onfig" in str(error) else "data.split" if "split" in str(error) else "data.path"
        raise InputError(f"hub data set {name} cannot be read: {reason_of(error)}; see {key}") from None


def open_folder(
    folder: Path,
    config: str | None,
    split: str | None,
    *,
    split_asked: bool,
    config_asked: bool,
) -> Any:
    """The split of the data set in a local folder, as a `datasets.Dataset`; of one that `save_to_disk` wrote too.

    Of CSV files a list of their paths: `datasets` would make numbers of texts like "007", and nothing of "NA".
    A folder without the configuration or split that a definition names, but with only one there is, gives
    that one: copies are often plain files.  What the user asked for by key must be there. Raises InputError
    listing the configurations or splits there are.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _saved(folder, split, split_asked)
        names = datasets.get_dataset_config_names(str(folder))
        chosen = config if config in names else None
        if chosen is None and config is not None and (folder / config).is_dir() and not config_asked:
            return open_folder(folder / config, None, split, split_asked=split_asked, config_asked=False)
        if chosen is None and (config_asked or len(names) > 1):
            what = f"no configuration {config!r}" if config else "several configurations"
            near = did_you_mean(config, names) if config else ""
            raise InputError(f"{folder} has {what}{near}; there are {', '.join(names)}: set data.config")
        with _quiet():
            found = _csv_files(datasets.load_dataset_builder(str(folder), chosen))
            found = found or datasets.load_dataset(str(folder), chosen)
    except (DatasetNotFoundError, ValueError, RuntimeError, OSError) as error:
        message = f"folder {folder} cannot be read as a data set: {reason_of(error)}; set data.path to another copy"
        raise InputError(message) from None
    return _split_of({str(name): part for name, part in found.items()}, folder, split, split_asked)


def _saved(folder: Path, split: str | None, split_asked: bool) -> Any:
    """The split of what `save_to_disk` wrote: one data set, or several by their splits."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (KeyError, TypeError, AttributeError, AssertionError, FileNotFoundError) as error:
        raise ValueError(f"save_to_disk left it incomplete, or it was changed: {reason_of(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        splits = {str(name): part.with_format(None) for name, part in found.items()}
        return _split_of(splits, folder, split, split_asked)
    return _split_of({str(found.split or "train"): found.with_format(None)}, folder, split, split_asked)


def _csv_files(builder: Any) -> dict[str, list[Path]]:
    """The files by split of a data set of CSV files that says no types for their columns; {} for others."""
    from datasets.packaged_modules.csv.csv import CsvConfig

    config = builder.config
    if not isinstance(config, CsvConfig) or config.features is not None:
        return {}
    return {name: [Path(file) for file in files] for name, files in (config.data_files or {}).items()}


def _split_of(found: dict[str, Any], folder: Path, split: str | None, split_asked: bool) -> Any:
    wanted = split or "test"
    if wanted in found:
        return found[wanted]
    if len(found) == 1 and not split_asked:
        return next(iter(found.values()))
    near = did_you_mean(wanted, found)
    raise InputError(f"{folder} has no split {wanted!r}{near}; there are {', '.join(found)}: set data.split")


def plain_rows(dataset: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows' wanted columns; class labels as their names, images undecoded as {bytes, path}."""
    import datasets

    dataset = dataset.select_columns(columns)
    labels = {}
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.ClassLabel):
            labels[name] = feature
        undecoded = _undecoded(feature, datasets)
        if undecoded is not None:
            dataset = dataset.cast_column(name, undecoded)
    for row in dataset:
        for name, feature in labels.items():
            value = row[name]
            row[name] = None if value is None or value < 0 else feature.int2str(value)
        yield row


def _undecoded(feature: Any, datasets: Any) -> Any:
    """The feature with its images left as they are stored, or None where there are none."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        inner = _undecoded(feature.feature, datasets)
        return None if inner is None else datasets.List(inner, feature.length)
    if isinstance(feature, dict):
        parts = {name: _undecoded(part, datasets) for name, part in feature.items()}
        if any(part is not None for part in parts.values()):
            return {name: feature[name] if part is None else part for name, part in parts.items()}
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars: a local folder is read in no time."""
    import datasets

    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _also(note: str) -> str:
    return f". {note}" if note else ""
