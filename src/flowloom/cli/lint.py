"""`flowloom dataset lint`, `flowloom dataset fix`, `flowloom preflight`: parses, calls, prints."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.config.local_paths import with_local_paths

if TYPE_CHECKING:
    from flowloom.datasets.lint.check import LintOptions
    from flowloom.storage.base import StorageSection

OK, WRONG = 0, 2
STORAGE_KEYS = {"endpoint": "URL", "region": "NAME", "addressing": "HOW", "profile": "NAME", "anonymous": ""}
"""Options of `flowloom dataset` beside the data's own: key of `storage`, what stands for its value."""


def lint(words: list[str]) -> int:
    """`flowloom dataset lint`: 0 when no error was found, else 2."""
    parser = _parser("dataset lint", "FILE.jsonl [options]", LINT_VERBS["lint"][0])
    _add_data(parser)
    add = parser.add_argument
    add("--json", action="store_true", help="print the report as JSON")
    add("--html", type=Path, metavar="FILE.html", help="write it as one page with images")
    add("--shown", type=int, default=10, metavar="N", help="findings printed of each kind; default: 10")
    asked = parser.parse_args(words)

    from flowloom.datasets.lint.check import lint as check
    from flowloom.datasets.lint.text import report_text

    seen = check(_options(asked))
    if asked.html:
        from flowloom.datasets.lint.page import write_page

        write_page(asked.html, seen)
    if asked.json:
        print(json.dumps(seen.report.as_json(), ensure_ascii=False, indent=1))
    else:
        print(report_text(seen.report, asked.shown))
    if asked.html:
        print(f"written    {asked.html}", file=sys.stderr)
    return WRONG if seen.report.count("error") else OK


def fix(words: list[str]) -> int:
    """`flowloom dataset fix`: says what it did, line by line."""
    parser = _parser("dataset fix", "FILE.jsonl -o NEW.jsonl [options]", LINT_VERBS["fix"][0])
    _add_data(parser)
    add = parser.add_argument
    add("-o", "--out", type=Path, required=True, metavar="NEW.jsonl", help="must not exist")
    add("--near", action="store_true", help="of near duplicates, keep the largest only")
    add("--drop-empty", action="store_true", help="take out rows without a caption")
    asked = parser.parse_args(words)

    from flowloom.datasets.lint.fix import FixOptions
    from flowloom.datasets.lint.fix import fix as mend

    done = mend(FixOptions(_options(asked), asked.near, asked.drop_empty), asked.out)
    for change in done.changes:
        print(f"{asked.jsonl}:{change.line}: {change.action}")
    print(
        f"written    {done.path}: {done.num_written:,} of {done.num_read:,} rows, "
        f"{len(done.changes):,} changes"
    )
    return OK


def preflight(words: list[str]) -> int:
    """`flowloom preflight`: 0 when the run can start, else 2."""
    about = "shows memory, disk, time and bad data of a run before it starts"
    parser = _parser("preflight", "CONFIG.json [options] [--section.key VALUE ...]", about)
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG.json", help="as for 'flowloom train'")
    add("--json", action="store_true", help="print it as JSON")
    add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="runs folder; default: runs")
    add("--gpu-gib", type=float, metavar="N", help="for a CUDA card with N GiB that is not here")
    add(
        "--samples-per-s",
        type=float,
        metavar="X",
        help="a known rate; default: an earlier run's, or estimated",
    )
    own = [option for action in parser._actions for option in action.option_strings]

    from flowloom.config.flags import split_flags

    rest, overrides = split_flags(words, own)
    asked = parser.parse_args(rest)

    from flowloom.config.flow_format.read import read_config
    from flowloom.engine.estimate.preflight import Target, preflight_text
    from flowloom.engine.estimate.preflight import preflight as examine

    loaded = read_config(asked.config, overrides)
    found = examine(loaded, Target(asked.runs_dir, asked.gpu_gib, asked.samples_per_s))
    print(found.report().model_dump_json(indent=1) if asked.json else preflight_text(found))
    return OK if found.can_run else WRONG


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("jsonl", type=Path, metavar="FILE.jsonl", help="FLOW's JSONL")
    add("--config", type=Path, metavar="CONFIG.json", help="of the run: its buckets, batch size, tokenizer")
    add("--images", metavar="DIR", help="where names begin; default: as its build or the config says")
    add("--resolution", type=_numbers, metavar="N[,N]", help="default: the config's, else 512")
    add("--batch-size", type=int, metavar="N", help="default: the config's, else 1")
    add("--tokenizer", type=Path, metavar="DIR", help="T5's, to count tokens; default: the config's")
    add("--max-tokens", type=int, metavar="N", help="default: the config's, else 512")
    add("--upscale", type=float, default=1.0, metavar="X", help="tell of upscaling beyond; default: 1")
    add(
        "--near-bits",
        type=int,
        default=8,
        metavar="N",
        help="of 128, for near duplicates; -1: none; default: 8",
    )
    add("--no-images", action="store_true", help="read only the JSONL")
    add("--urls", action="store_true", help="fetch images from URLs, too")
    add("--threads", type=int, default=4, metavar="N", help="default: 4")
    add_storage(parser)


def add_storage(parser: argparse.ArgumentParser) -> None:
    """The keys of `storage` by which a store is found and entered, with the words of the configuration."""
    from flowloom.storage.base import StorageSection

    for key, metavar in STORAGE_KEYS.items():
        told = StorageSection.model_fields[key].description
        if metavar:
            parser.add_argument(f"--{key}", metavar=metavar, help=told)
        else:
            parser.add_argument(f"--{key}", action="store_true", default=None, help=told)


def storage_of(asked: argparse.Namespace, known: StorageSection | None = None) -> StorageSection:
    """`known`, or the defaults, with what was `asked` for.

    Raises:
        ConfigError: the endpoint is no address.
    """
    from pydantic import ValidationError

    from flowloom.errors import ConfigError, Problem
    from flowloom.storage.base import StorageSection

    given = {key: getattr(asked, key) for key in STORAGE_KEYS if getattr(asked, key) is not None}
    try:
        return StorageSection.model_validate((known or StorageSection()).model_dump() | given)
    except ValidationError as error:
        wrong = [Problem(f"--{part['loc'][0]}", "write it as https://HOST.") for part in error.errors()]
        raise ConfigError("the command", wrong) from None


def _options(asked: argparse.Namespace) -> LintOptions:
    from flowloom.config.flow_format.read import read_config
    from flowloom.config.run import RunConfig
    from flowloom.datasets.build.rows import image_folder
    from flowloom.datasets.lint.check import LintOptions

    config = read_config(asked.config, []).config if asked.config else RunConfig()
    known = config.dataloader.image_folder_path if asked.config else image_folder(asked.jsonl, None)
    images = asked.images or known
    data: dict[str, Any] = {"jsonl_metadata_path": str(asked.jsonl), "image_folder_path": str(images)}
    data |= {"base_resolution": asked.resolution} if asked.resolution else {}
    data |= {"batch_size": max(1, asked.batch_size)} if asked.batch_size else {}
    model: dict[str, Any] = {"t5_max_length": asked.max_tokens} if asked.max_tokens else {}
    tokenizer = asked.tokenizer or (config.model.t5_tokenizer_path and Path(config.model.t5_tokenizer_path))
    return LintOptions(
        config=config.model_copy(
            update={
                "dataloader": config.dataloader.model_copy(update=data),
                "model": config.model.model_copy(update=model),
                "storage": storage_of(asked, config.storage),
            }
        ),
        tokenizer=tokenizer or None,
        with_images=not asked.no_images,
        with_urls=asked.urls,
        upscale=asked.upscale,
        near_bits=asked.near_bits,
        threads=max(1, asked.threads),
        progress=_Counter(),
    )


def _numbers(text: str) -> list[int]:
    numbers = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if min(numbers) < 64:
        raise argparse.ArgumentTypeError(f"write it as 512 or 512,1024, not {text}")
    return numbers


LINT_VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "lint": ("reports problems of a JSONL and its images as text, JSON or a page", lint),
    "fix": ("writes a repaired copy of a JSONL", fix),
}
"""For `flowloom dataset`."""


def _parser(verb: str, usage: str, about: str) -> argparse.ArgumentParser:
    return with_local_paths(
        argparse.ArgumentParser(
            f"flowloom {verb}",
            f"flowloom {verb} {usage}",
            f"{verb.capitalize()}: {about}.",
            allow_abbrev=False,
        )
    )


class _Counter:
    """Count images on a terminal, a few times per second."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if self._is_shown and now - self._last > 0.2:
            self._last = now
            sys.stderr.write(f"\r{count:,} images\033[K\r")
            sys.stderr.flush()
