"""The binary index of a JSONL: its columns in a memory-mapped file next to it.

The file is MAGIC, the length of the header (8 bytes, little-endian), the header as JSON, then each column of
`rows.KINDS`, aligned to 64 bytes. It is replaced atomically. The header has the size, the time and a hash of
samples of the JSONL; an index of another content is replaced.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from flowloom.data.rows import KINDS, Columns, RowProblem, Scanned, scan
from flowloom.files import replacing

MAGIC = b"FLINDEX1"
ALIGNMENT = 64
INDEXED_BYTES = 2**22
"""Smaller files are read quickly and get no index."""
BYTES_PER_PROCESS = 2**26
MAX_PROCESSES = 8
SAMPLES = 16
SAMPLE_BYTES = 2**12


def read_columns(path: Path) -> tuple[Columns, list[RowProblem]]:
    """The columns of the JSONL at `path` and its unusable lines, from its index if that is up to date.

    Otherwise the file is read and the index written: next to it if possible, or in the user's cache.
    """
    size = path.stat().st_size
    if size < INDEXED_BYTES:
        scanned = scan(path)
        return scanned.columns, scanned.problems
    key = _key_of(path)
    for index_path in index_paths(path):
        indexed = _open(index_path, key)
        if indexed is not None:
            return indexed
    scanned = _scan_in_processes(path, size)
    for index_path in index_paths(path):
        if _write(index_path, key, scanned):
            return _open(index_path, key) or (scanned.columns, scanned.problems)
    return scanned.columns, scanned.problems


def index_paths(path: Path) -> tuple[Path, Path]:
    """Possible paths of the index of `path`: next to it, and in the user's cache."""
    absolute = path.resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(os.fsencode(absolute), digest_size=12).hexdigest()
    return absolute.with_name(f"{absolute.name}.index"), cache / "flowloom" / "index" / f"{digest}.index"


def _key_of(path: Path) -> dict[str, Any]:
    """Size, time and a hash of samples, which change with the content of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        for position in np.linspace(0, max(0, status.st_size - SAMPLE_BYTES), SAMPLES).astype(int):
            digest.update(os.pread(file.fileno(), SAMPLE_BYTES, position))
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "samples": digest.hexdigest()}


def _open(index_path: Path, key: dict[str, Any]) -> tuple[Columns, list[RowProblem]] | None:
    """The mapped columns of the index at `index_path`; None if it is missing, incomplete or outdated."""
    try:
        mapped = np.memmap(index_path, np.uint8, "r")
    except (OSError, ValueError):
        return None
    content: NDArray[np.uint8] = np.asarray(mapped)
    if len(content) < 16 or content[:8].tobytes() != MAGIC:
        return None
    end = 16 + int.from_bytes(content[8:16].tobytes(), "little")
    try:
        header = orjson.loads(content[16:end].tobytes())
    except orjson.JSONDecodeError:
        return None
    if header["key"] != key or header["kinds"] != KINDS or header["bytes"] != len(content):
        return None
    columns: Columns = {}
    for name, kind in KINDS.items():
        start = _aligned(end)
        end = start + header["rows"] * np.dtype(kind).itemsize
        columns[name] = content[start:end].view(kind)
    return columns, [RowProblem(line, reason) for line, reason in header["problems"]]


def _write(index_path: Path, key: dict[str, Any], scanned: Scanned) -> bool:
    """Write the index to `index_path`; False if that is not possible."""
    header = {
        "key": key,
        "kinds": KINDS,
        "rows": len(scanned.columns["line"]),
        "problems": [(problem.line, problem.reason) for problem in scanned.problems],
    }
    # The header contains the length of the file, which must not change the length of the header.
    end = 16 + len(orjson.dumps(header | {"bytes": 10**18}))
    total = end
    for column in scanned.columns.values():
        total = _aligned(total) + column.nbytes
    head = orjson.dumps(header | {"bytes": total}).ljust(end - 16)
    partial = index_path.with_name(f"{index_path.name}.{os.getpid()}.new")
    try:
        index_path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(index_path, partial, is_durable=False) as file:
            file.write(MAGIC + len(head).to_bytes(8, "little") + head)
            for name, kind in KINDS.items():
                file.write(bytes(_aligned(file.tell()) - file.tell()))
                file.write(np.ascontiguousarray(scanned.columns[name], kind).data)
    except OSError:
        return False  # the folder is read-only, or the disk is full
    return True


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _scan_in_processes(path: Path, size: int) -> Scanned:
    """`scan` a large file by several processes, each a range of complete lines."""
    num_processes = min(size // BYTES_PER_PROCESS, len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if num_processes < 2:
        return scan(path)
    edges = [*_line_starts(path, [size * i // num_processes for i in range(num_processes)]), size]
    command = [sys.executable, "-m", "flowloom.data.index", str(path)]
    ranges = list(pairwise(edges))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    others = [
        subprocess.Popen([*command, str(a), str(b)], stdout=subprocess.PIPE, env=environment)
        for a, b in ranges[1:]
    ]
    parts = [scan(path, *ranges[0])]
    for process, (start, stop) in zip(others, ranges[1:], strict=True):
        output, _ = process.communicate()
        parts.append(_unpacked(output) if process.returncode == 0 else scan(path, start, stop))
    return _joined(parts)


def _line_starts(path: Path, positions: list[int]) -> Iterator[int]:
    """The start of the first line at or after each position."""
    with path.open("rb") as file:
        for position in positions:
            file.seek(max(position - 1, 0))
            if position:
                file.readline()
            yield file.tell()


def _joined(parts: list[Scanned]) -> Scanned:
    """Consecutive parts of a file as one, with continuous line numbers."""
    problems: list[RowProblem] = []
    before = 0
    for part in parts:
        problems += [RowProblem(before + problem.line, problem.reason) for problem in part.problems]
        part.columns["line"] = part.columns["line"] + before
        before += part.num_lines
    columns = {name: np.concatenate([part.columns.pop(name) for part in parts]) for name in KINDS}
    return Scanned(columns, problems, before)


def _packed(scanned: Scanned) -> Iterator[bytes | memoryview]:
    problems = [(problem.line, problem.reason) for problem in scanned.problems]
    yield orjson.dumps([scanned.num_lines, len(scanned.columns["line"]), problems]) + b"\n"
    for name, kind in KINDS.items():
        yield np.ascontiguousarray(scanned.columns[name], kind).data.cast("B")


def _unpacked(data: bytes) -> Scanned:
    end = data.index(b"\n") + 1
    num_lines, num_rows, problems = orjson.loads(data[:end])
    columns: Columns = {}
    for name, kind in KINDS.items():
        columns[name] = np.frombuffer(data, kind, num_rows, end)
        end += columns[name].nbytes
    return Scanned(columns, [RowProblem(line, reason) for line, reason in problems], num_lines)


if __name__ == "__main__":
    for piece in _packed(scan(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))):
        sys.stdout.buffer.write(piece)
