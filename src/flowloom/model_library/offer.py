"""A model to download: its files, its license, and the keys of a configuration that name it."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Offered:
    """One file of a repository."""

    repo: str
    name: str
    save_as: str
    """Below the folder for models."""


@dataclass(frozen=True)
class Offer:
    """A model to download."""

    id: str
    title: str
    note: str
    architecture: str
    """An architecture; `t5-tokenizer` of T5's tokenizer and sizes."""
    license: str
    size: int
    """Bytes, about."""
    files: tuple[Offered, ...]
    sets: tuple[tuple[str, str], ...]
    """Keys of a configuration, each with its value: a `save_as` or its folder."""
    families: tuple[str, ...] = ()
    """Families that it is for; empty: every one that has these keys."""
