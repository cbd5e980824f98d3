"""Quantized networks kept on disk: the next start reads these instead of the wide weights.

One file for each network and way of quantizing it, named after a hash of both. Files are written under a lock
and get their name when they are complete; each tensor has a checksum, and a damaged file is replaced.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from flowloom.errors import FlowloomError, WeightsError
from flowloom.files import parsed
from flowloom.json_types import is_object
from flowloom.locks import hold, is_held
from flowloom.models.header import PICKLED, read_header
from flowloom.models.weight_files import files_of, open_file
from flowloom.models.weights import save_weights

SAMPLE = 2**12
"""Bytes of each tensor that are hashed at its start, middle and end."""
_LAYOUT = "quantized network; 1"
_CHECKSUMS = "flowloom.checksums"
_SUFFIX = ".safetensors"
_EVEN_SAMPLES = 4096
_SPARE_BYTES = 2**30
_log = logging.getLogger("flowloom")


def default_folder() -> Path:
    """The folder for quantized networks in the user's cache, by XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "flowloom" / "quantized"


def key_of(path: Path, *ways: object) -> str:
    """The name of the network in `path` quantized in these `ways`.

    It covers every file's size, modification time, header and samples of each tensor, and the versions of the
    packages that quantize.

    Raises:
        WeightsError, OSError: a file is missing or damaged.
    """
    hasher = hashlib.blake2b(digest_size=16)
    packages = [f"{name} {version(name)}" for name in ("torch", "bitsandbytes", "safetensors") if _has(name)]
    hasher.update(json.dumps([_LAYOUT, packages, *map(str, ways)]).encode())
    for file in files_of(path):
        stat = file.stat()
        hasher.update(json.dumps([stat.st_size, stat.st_mtime_ns]).encode())
        with file.open("rb") as content:
            for start in _samples(file, stat.st_size):
                content.seek(start)
                hasher.update(content.read(SAMPLE))
    return hasher.hexdigest()


def _has(package: str) -> bool:
    try:
        version(package)
    except ModuleNotFoundError:
        return False
    return True


def _samples(file: Path, size: int) -> Iterable[int]:
    """Where to read SAMPLE bytes: rotation changes single tensors, so each has samples."""
    if file.suffix in PICKLED:
        return range(0, size, max(SAMPLE, size // _EVEN_SAMPLES))
    places = read_header(file).tensors.values()
    first = min((place.begin for place in places), default=size)
    header = range(0, first, SAMPLE)
    inside = (
        at
        for place in places
        for at in (place.begin, (place.begin + place.end) // 2, max(place.begin, place.end - SAMPLE))
    )
    return (*header, *inside)


class QuantizedCache:
    """Files of quantized networks in `folder`, up to `most_bytes` in total."""

    def __init__(self, folder: Path, most_bytes: int):
        self._folder, self._most_bytes = folder, most_bytes

    def load(self, key: str, place: Callable[[Tensor], Tensor]) -> dict[str, Tensor] | None:
        """The tensors under `key`, each checked and then made by `place`; None if there are none.

        A damaged file is deleted.
        """
        path = self._folder / f"{key}{_SUFFIX}"
        if not path.is_file():
            return None
        try:
            entries, metadata = open_file(path)
            checksums = parsed(metadata.get(_CHECKSUMS, "").encode())
            if not is_object(checksums) or checksums.keys() != entries.keys():
                raise WeightsError(f"{path}: damaged: it has no checksums.")
            tensors: dict[str, Tensor] = {}
            for name, entry in entries.items():
                tensor = entry.read()
                if _checksum(tensor) != checksums[name]:
                    raise WeightsError(f"{path}: damaged: {name} has another checksum.")
                tensors[name] = place(tensor)
            os.utime(path)  # the least recently used file is removed first
        except (FlowloomError, OSError, ValueError) as error:
            _log.warning("%s The quantized weights are made again.", error)
            path.unlink(missing_ok=True)
            return None
        return tensors

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors` under `key`, unless another process is doing so or the disk has no room."""
        path = self._folder / f"{key}{_SUFFIX}"
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if needed > self._most_bytes:
            return
        try:
            lock = hold(path.with_suffix(".lock"), patience_s=0)
            if lock is None:
                return
            try:
                if not path.exists():
                    self._write(path, tensors, needed)
            finally:
                os.close(lock)
        except (FlowloomError, OSError) as error:
            _log.warning("The quantized weights are not kept for the next start: %s", error)

    def _write(self, path: Path, tensors: Mapping[str, Tensor], needed: int) -> None:
        self._prune(self._most_bytes - needed)
        if shutil.disk_usage(self._folder).free < 2 * needed + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, "too little space is left", str(self._folder))
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        save_weights(path, tensors, {_CHECKSUMS: json.dumps(checksums)})

    def _prune(self, most_bytes: int) -> None:
        """Delete the least recently used files until `most_bytes` are left, and incomplete ones."""
        for unfinished in self._folder.glob(f"*{_SUFFIX}.tmp"):
            if not is_held(unfinished.with_name(unfinished.name.replace(f"{_SUFFIX}.tmp", ".lock"))):
                unfinished.unlink(missing_ok=True)
        files = [(path.stat(), path) for path in self._folder.glob(f"*{_SUFFIX}")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if total <= most_bytes:
                break
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
            total -= stat.st_size


def _checksum(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data)
