"""The check that all ranks see the same files: otherwise they would train different networks and rows."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

from flowloom.config.run import RunConfig
from flowloom.data.dataset import dataset_sources
from flowloom.datasets.build.build import digest_of
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import FlowloomError, RankError, one_line
from flowloom.models.weight_files import files_of
from flowloom.run.directory import versions

BEGINNING = 2**20
"""Bytes of a weights file that are compared, beside its size: they hold names and shapes of all weights."""

Seen = dict[str, str]
"""The content of each thing that must be equal, as a digest or as the reason why it cannot be read."""


def require_same_files(config: RunConfig, ranks: Ranks) -> None:
    """Compare configuration, rows, base model and package versions of all ranks.

    Raises:
        RankError: they differ; it names the first difference. All ranks raise it.
    """
    if ranks.size == 1:
        return
    hosts_and_seen = ranks.gathered([(socket.gethostname(), seen_by_this_rank(config))])
    (first_host, first), *others = hosts_and_seen
    for rank, (host, seen) in enumerate(others, start=1):
        for what in first.keys() | seen.keys():
            if first.get(what) != seen.get(what):
                raise RankError(
                    f"{what} differs between rank 0 on {first_host} ({first.get(what)}) and rank {rank} on "
                    f"{host} ({seen.get(what)}). Give all ranks the same files and packages."
                )


def seen_by_this_rank(config: RunConfig) -> Seen:
    """The files of `config`, as this rank sees them."""
    seen = {
        "run.json": hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12],
        "the list of installed packages": json.dumps(versions()),
        str(config.model.network_path): _weights(config.model.network_path),
    }
    for source in dataset_sources(config):
        seen[str(source.path)] = _rows(source.path)
    return seen


def _rows(path: Path) -> str:
    try:
        return digest_of(path)[:12]
    except OSError as error:
        return one_line(str(error))


def _weights(path: Path) -> str:
    """Sizes and beginnings of the weights files of a network."""
    digest, size = hashlib.sha256(), 0
    try:
        for file in files_of(path):
            size += file.stat().st_size
            with file.open("rb") as content:
                digest.update(f"{file.name} {file.stat().st_size}".encode() + content.read(BEGINNING))
    except (OSError, FlowloomError) as error:
        return one_line(str(error))
    return f"{size:,} bytes, {digest.hexdigest()[:12]}"
