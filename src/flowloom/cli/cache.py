"""`flowloom cache ...`: fill, inspect, verify and prune the cache of a configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.config.local_paths import with_local_paths
from flowloom.errors import size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from flowloom.config.run import RunConfig

OK, WRONG = 0, 2
ABOUT = {
    "fill": "encode entries of CONFIG that are missing: latents of images, states of captions",
    "stats": "show the amount of each kind in the cache of CONFIG",
    "verify": "read every record of the cache and list damaged ones",
    "prune": "delete entries that no CONFIG uses; not while a run uses the cache",
}


def run(arguments: list[str]) -> int:
    """`flowloom cache [fill|stats|verify|prune] CONFIG.json [--section.key VALUE ...]`; the exit status."""
    action = arguments[0] if arguments and arguments[0] in ABOUT else "fill"
    from flowloom.config.flags import split_flags

    parser = _parser(action)
    given = arguments[1:] if arguments[:1] == [action] else arguments
    rest, overrides = split_flags(given, ["-h", "--help", "--processes"])
    args = parser.parse_args(rest)

    from flowloom.config.flow_format.read import read_config

    configs = [read_config(path, overrides).config for path in args.config]
    if action == "prune":
        return _prune(configs)
    if action == "fill" and args.processes > 1:
        return _fill_in_processes(args.config[0], overrides, args.processes)
    actions: dict[str, Callable[[RunConfig], int]] = {"fill": _fill, "stats": _stats, "verify": _verify}
    return actions[action](configs[0])


def _parser(action: str) -> argparse.ArgumentParser:
    import argparse

    others = "".join(f"  {name:<7} {about}\n" for name, about in ABOUT.items())
    parser = argparse.ArgumentParser(
        "flowloom cache",
        "flowloom cache [fill|stats|verify|prune] CONFIG.json [--section.key VALUE ...]",
        f"cache {action}: {ABOUT[action]}.",
        f"{others}\nSet cache.latents, cache.text or both to disk, in the file or as flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    count: Any = "+" if action == "prune" else 1
    config = "as for `flowloom train`"
    parser.add_argument("config", type=Path, metavar="CONFIG.json", nargs=count, help=config)
    if action == "fill":
        about = "encode with N processes, one for each GPU; each encodes its share. Default: 1"
        parser.add_argument("--processes", type=_count, metavar="N", default=1, help=about)
    return with_local_paths(parser)


def _count(text: str) -> int:
    """A number of processes, for argparse.

    Raises:
        ValueError: it is not at least 1.
    """
    if int(text) < 1:
        raise ValueError
    return int(text)


def _fill_in_processes(path: Path, overrides: list[tuple[str, str]], num_processes: int) -> int:
    """Fill the cache with so many processes; 0 if each of them completed its share."""
    import subprocess

    flags = [part for key, text in overrides for part in (f"--{key}", text)]
    command = [sys.executable, "-m", "flowloom.cli.main", "cache", "fill", str(path), *flags]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "WORLD_SIZE": str(num_processes), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_processes)
    ]
    statuses = [process.wait() for process in started]
    for rank, status in enumerate(statuses):
        if status:
            reason = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
            print(f"flowloom: process {rank} of {num_processes} {reason}.", file=sys.stderr)
    if not any(statuses):
        return OK
    print(
        "flowloom: run the same command again: it encodes only the entries that are missing.", file=sys.stderr
    )
    return WRONG


def _fill(config: RunConfig) -> int:
    from flowloom.engine.fill_cache import fill

    # Set by torchrun: each of several processes fills its share.
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    filled = fill(config, _progress, rank=rank, world_size=world_size)
    share = f" (share {rank + 1} of {world_size})" if world_size > 1 else ""
    print(f"cached     {filled.images:,} images, {filled.captions:,} captions in {config.cache.dir}{share}")
    if filled.seconds:
        stage, share = filled.slowest
        total = sum(filled.seconds.values())
        print(f"took       {total:.1f} s; {share:.0%} of it {stage}")
    for row in filled.skipped:
        where = f"{filled.files[row.dataset]}:{row.line}"
        print(f"skipped    {where}: {row.filename}: {row.reason}", file=sys.stderr)
    if filled.full:
        print(f"flowloom: {filled.full}: the rest is encoded during training.", file=sys.stderr)
    return WRONG if filled.full else OK


def _progress(unit: str, done: int, total: int) -> None:
    # The first of several processes shows it for all.
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"\r{unit:<10} {done:,} of {total:,}\x1b[K")
        sys.stderr.flush()


def _stats(config: RunConfig) -> int:
    from flowloom.engine.fill_cache import stats

    cached = stats(config)
    limit = f" of {config.cache.limit_gib:g} GiB" if config.cache.limit_gib else ""
    print(f"{config.cache.dir}: {size_text(cached.bytes)}{limit} in {_counted(cached.shards, 'shard')}")
    if cached.open_bytes:
        print(f"  being written by this machine: {size_text(cached.open_bytes)}")
    for kind, (count, size) in cached.kinds.items():
        print(f"  {kind:<16} {_counted(count, 'record'):>20} {size_text(size):>12}")
    if cached.twice:
        print(f"  {cached.twice:,} of them duplicate: 'flowloom cache prune' removes these")
    for fault in cached.faults:
        print(f"  {fault}")
    return WRONG if cached.faults else OK


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _verify(config: RunConfig) -> int:
    from flowloom.engine.fill_cache import verify

    count = 0
    for fault in verify(config):
        count += 1
        print(fault)
    if count:
        print("Damaged records count as missing: the next run or 'flowloom cache' encodes them again.")
    else:
        print(f"{config.cache.dir}: every record is intact.")
    return WRONG if count else OK


def _prune(configs: list[RunConfig]) -> int:
    from flowloom.engine.fill_cache import prune

    done = prune(configs)
    dropped, stay = _counted(done.dropped, "record"), f"{done.stay:,} kept"
    print(f"{configs[0].cache.dir}: {dropped} removed, {stay}")
    if done.unjudged:
        print(f"flowloom: {done.unjudged}", file=sys.stderr)
        print(
            "flowloom: no latents were removed, because this image cannot be read and may use some. "
            "Prune again when it is readable.",
            file=sys.stderr,
        )
    return OK
