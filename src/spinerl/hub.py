"""The Hugging Face hub: whether it can be reached, and what its errors mean, in a line.  No torch.

A hub that is away is asked once: its libraries would ask it again and again, for half a minute per file.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as _HTTPError  # pyright: ignore[reportPrivateImportUsage]

from spinerl.errors import reason_of

__all__ = [
    "LOG_IN",
    "TransportError",
    "answer_of",
    "host",
    "model_fault",
    "one_try",
    "status_of",
    "unreachable",
    "why_away",
    "without_token",
]

TransportError: type[Exception] = _HTTPError
"""What the library's client raises over a connection; its package has been another one before."""

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"

_PATIENCE = 10.0  # seconds that a connection may take, as for the hub's own libraries
_REMEMBERED = 30.0  # seconds for which the answer holds
_found: dict[str, tuple[float, str | None]] = {}


def host() -> str:
    """The hub's host, as people know it."""
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or constants.ENDPOINT


def unreachable() -> str | None:
    """Why no connection to the hub can be made, in some words; None where it can.  Looked up at most every 30 s."""
    endpoint = constants.ENDPOINT
    at, why = _found.get(endpoint, (-_REMEMBERED, None))
    if time.monotonic() - at >= _REMEMBERED:
        why = _try_connection(endpoint)
        _found[endpoint] = time.monotonic(), why
    return why


def _try_connection(endpoint: str) -> str | None:
    """One connection to the hub, or to the proxy that leads there."""
    target = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        socket.create_connection((target.hostname or "", port), _PATIENCE).close()
    except (OSError, ValueError, UnicodeError) as error:
        return str(getattr(error, "strerror", None) or reason_of(error, 80))
    return None


@contextmanager
def one_try() -> Iterator[None]:
    """Inside, a hub that cannot be reached is not asked at all: copies in its cache serve, as with HF_HUB_OFFLINE=1."""
    modules = [constants, *([sys.modules["datasets.config"]] if "datasets.config" in sys.modules else [])]
    before = [module.HF_HUB_OFFLINE for module in modules]
    if not constants.HF_HUB_OFFLINE and unreachable() is not None:
        for module in modules:
            module.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value  # pyright: ignore[reportAttributeAccessIssue]


def why_away() -> str | None:
    """Why the hub is not asked, in a clause: the user's wish, or no connection; None where it is."""
    if constants.HF_HUB_OFFLINE:
        variable = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), None)
        return f"{variable or 'HF_HUB_OFFLINE'} is set, so that the hub is not asked"
    why = unreachable()
    return None if why is None else f"the hub ({host()}) cannot be reached ({why})"


def model_fault(name: str, revision: str | None, file: str = "config.json") -> str | None:
    """Why a model of the hub cannot be had, and what to do, as the rest of a line; None where it can.

    Args:
        file: of the model, for which the hub is asked.
    """
    local = "for a copy on this machine give its folder, model=FOLDER"
    if "/" not in name:
        local = f"there is no folder {name} here either; {local}"
    away = why_away()
    try:
        with one_try():
            hf_hub_download(name, file, revision=revision, local_files_only=constants.HF_HUB_OFFLINE)
    except HFValidationError:
        return "it is neither a folder nor a name on the hub (owner/name)"
    except GatedRepoError:
        return f"it is gated: accept its conditions on its page on the hub, then {LOG_IN}; {local}"
    except RevisionNotFoundError:
        return f"it has no revision {revision}; see model.revision"
    except RepositoryNotFoundError:
        return f"there is no such model on the hub, or it is private: then {LOG_IN}; {local}"
    except (HfHubHTTPError, EntryNotFoundError, OSError, TransportError) as error:
        if away is not None:
            return f"{away}, and its cache has no copy; {local}"
        if isinstance(error, EntryNotFoundError) and status_of(error) is not None:
            return f"it has no {file} on the hub, so it is no model of transformers; {local}"
        asked = error if status_of(error) is not None else error.__cause__ or error
        status = status_of(asked)
        if status == 401:
            return (
                f"the hub refuses the request (401): there is no such model, or it is private: then {LOG_IN}; {local}"
            )
        if status is not None:
            return f"the hub answers {answer_of(asked)}; its cache has no copy; try again later; {local}"
        return f"the hub ({host()}) cannot be asked ({reason_of(asked, 120)}), and its cache has no copy; {local}"
    return None


def status_of(error: BaseException) -> int | None:
    """The status of the hub's answer that an error is about; None for an error that is about none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def answer_of(error: BaseException) -> str:
    """The status of the hub's answer and its own words, on a line, without the token should they repeat it."""
    said = " ".join(str(getattr(error, "server_message", None) or "").split())
    return without_token(f"{status_of(error)}{f': {said[:200]}' if said else ''}")


def without_token(text: str) -> str:
    """A text in which the user's token, if it is there, is left out."""
    token = get_token()
    return text.replace(token, "[token]") if token else text
