"""Random streams by name: the same name gives the same numbers on every machine, in any order of asking."""

from __future__ import annotations

import hashlib

__all__ = ["seed_of"]


def seed_of(*name: object) -> int:
    """A 63-bit seed that depends on nothing but the name's parts.

    >>> seed_of(0, "train", 1) == seed_of(0, "train", 1), seed_of(0, "train", 1) == seed_of(0, "train", 2)
    (True, False)
    """
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
