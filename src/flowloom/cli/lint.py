"""`flowloom dataset lint`, `flowloom dataset fix` and `flowloom preflight`: parse, call, print."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.config.local_paths import local_path, with_local_paths

if TYPE_CHECKING:
    from flowloom.datasets.lint.check import LintOptions
    from flowloom.storage.base import StorageSection

OK, WRONG = 0, 2
STORAGE_KEYS = {"endpoint": "URL", "region": "NAME", "addressing": "HOW", "profile": "NAME", "anonymous": ""}
"""Keys of `storage` that are options of `flowloom dataset`, with their metavars."""


def lint(arguments: list[str]) -> int:
    """`flowloom dataset lint`: 0 if there are no errors, otherwise 2."""
    parser = _parser("dataset lint", "FILE.jsonl [options]", LINT_VERBS["lint"][0])
    _add_data(parser)
    add = parser.add_argument
    add("--json", action="store_true", help="print the report as JSON")
    add("--html", type=Path, metavar="FILE.html", help="write the report as an HTML page with images")
    add("--shown", type=int, default=10, metavar="N", help="findings printed of each kind; default: 10")
    args = parser.parse_args(arguments)

    from flowloom.datasets.lint.check import lint as check
    from flowloom.datasets.lint.text import report_text

    result = check(_options(args))
    if args.html:
        from flowloom.datasets.lint.page import write_page

        write_page(args.html, result)
    if args.json:
        print(json.dumps(result.report.as_json(), ensure_ascii=False, indent=1))
    else:
        print(report_text(result.report, args.shown))
    if args.html:
        print(f"written    {args.html}", file=sys.stderr)
    return WRONG if result.report.count("error") else OK


def fix(arguments: list[str]) -> int:
    """`flowloom dataset fix`: print the changes, line by line."""
    parser = _parser("dataset fix", "FILE.jsonl -o NEW.jsonl [options]", LINT_VERBS["fix"][0])
    _add_data(parser)
    add = parser.add_argument
    add("-o", "--out", type=Path, required=True, metavar="NEW.jsonl", help="must not exist")
    add("--near", action="store_true", help="keep only the largest of each group of near duplicates")
    add("--drop-empty", action="store_true", help="remove rows without a caption")
    args = parser.parse_args(arguments)

    from flowloom.datasets.lint.fix import FixOptions
    from flowloom.datasets.lint.fix import fix as write_fixed

    done = write_fixed(FixOptions(_options(args), args.near, args.drop_empty), args.out)
    for change in done.changes:
        print(f"{args.jsonl}:{change.line}: {change.action}")
    print(
        f"written    {done.path}: {done.num_written:,} of {done.num_read:,} rows, "
        f"{len(done.changes):,} changes"
    )
    return OK


def preflight(arguments: list[str]) -> int:
    """`flowloom preflight`: 0 if the run can start, otherwise 2."""
    about = "shows memory, disk, time and bad data of a run before it starts"
    parser = _parser("preflight", "CONFIG.json [options] [--section.key VALUE ...]", about)
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG.json", help="as for 'flowloom train'")
    add("--json", action="store_true", help="print it as JSON")
    add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="runs folder; default: runs")
    add("--gpu-gib", type=float, metavar="N", help="estimate for a GPU with N GiB")
    add(
        "--samples-per-s",
        type=float,
        metavar="X",
        help="a known rate; default: an earlier run's, or estimated",
    )
    add("--table", action="store_true", help="also list what fits cards of 8 to 80 GB")
    options = [option for action in parser._actions for option in action.option_strings]

    from flowloom.config.flags import split_flags

    rest, overrides = split_flags(arguments, options)
    args = parser.parse_args(rest)

    from flowloom.config.flow_format.read import read_config
    from flowloom.engine.estimate.preflight import Target
    from flowloom.engine.estimate.preflight import preflight as check_run
    from flowloom.engine.estimate.preflight_text import preflight_text

    loaded = read_config(args.config, overrides)
    report = check_run(loaded, Target(args.runs_dir, args.gpu_gib, args.samples_per_s, args.table))
    print(report.report().model_dump_json(indent=1) if args.json else preflight_text(report))
    return OK if report.can_run else WRONG


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    about = "FLOW's JSONL, also in a bucket: s3://BUCKET/FILE.jsonl"
    add("jsonl", type=_path_or_url, metavar="FILE.jsonl", help=about)
    add(
        "--config",
        type=Path,
        metavar="CONFIG.json",
        help="configuration with buckets, batch size and tokenizer",
    )
    add(
        "--images",
        metavar="DIR",
        help="folder that file names are relative to; default: the config's or as recorded",
    )
    add("--resolution", type=_numbers, metavar="N[,N]", help="default: the config's, else 512")
    add("--batch-size", type=int, metavar="N", help="default: the config's, else 1")
    add(
        "--tokenizer", type=Path, metavar="DIR", help="T5's tokenizer, to count tokens; default: the config's"
    )
    add("--max-tokens", type=int, metavar="N", help="default: the config's, else 512")
    add(
        "--upscale",
        type=float,
        default=1.0,
        metavar="X",
        help="report upscaling beyond this factor; default: 1",
    )
    add(
        "--near-bits",
        type=int,
        default=8,
        metavar="N",
        help="near duplicates may differ in N of 128 bits; -1: no search; default: 8",
    )
    add("--no-images", action="store_true", help="read only the JSONL")
    add("--urls", action="store_true", help="also download images from URLs")
    add("--threads", type=int, default=4, metavar="N", help="default: 4")
    add_storage(parser)


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add options for access to stores, with the help of the configuration."""
    from flowloom.storage.base import StorageSection

    for key, metavar in STORAGE_KEYS.items():
        about = StorageSection.model_fields[key].description
        if metavar:
            parser.add_argument(f"--{key}", metavar=metavar, help=about)
        else:
            parser.add_argument(f"--{key}", action="store_true", default=None, help=about)


def storage_of(args: argparse.Namespace, base: StorageSection | None = None) -> StorageSection:
    """`base`, or the defaults, with the options in `args`.

    Raises:
        ConfigError: the endpoint is not a URL.
    """
    from pydantic import ValidationError

    from flowloom.errors import ConfigError, Problem
    from flowloom.storage.base import StorageSection

    given = {key: getattr(args, key) for key in STORAGE_KEYS if getattr(args, key) is not None}
    try:
        return StorageSection.model_validate((base or StorageSection()).model_dump() | given)
    except ValidationError as error:
        problems = [Problem(f"--{part['loc'][0]}", "write it as https://HOST.") for part in error.errors()]
        raise ConfigError("the command", problems) from None


def _options(args: argparse.Namespace) -> LintOptions:
    from flowloom.config.flow_format.read import read_config
    from flowloom.config.run import RunConfig
    from flowloom.datasets.build.rows import image_folder
    from flowloom.datasets.lint.check import LintOptions
    from flowloom.storage.local_copy import is_url, local_copy

    config = read_config(args.config, []).config if args.config else RunConfig()
    jsonl = local_copy(args.jsonl, storage_of(args, config.storage))
    # Names in a JSONL in a bucket are relative to its folder there.
    beside = args.jsonl.rpartition("/")[0] if is_url(args.jsonl) else image_folder(jsonl, None)
    images = args.images or (config.dataloader.image_folder_path if args.config else beside)
    data: dict[str, Any] = {"jsonl_metadata_path": str(jsonl), "image_folder_path": str(images)}
    data |= {"base_resolution": args.resolution} if args.resolution else {}
    data |= {"batch_size": max(1, args.batch_size)} if args.batch_size else {}
    model: dict[str, Any] = {"t5_max_length": args.max_tokens} if args.max_tokens else {}
    tokenizer = args.tokenizer or (config.model.t5_tokenizer_path and Path(config.model.t5_tokenizer_path))
    return LintOptions(
        config=config.model_copy(
            update={
                "dataloader": config.dataloader.model_copy(update=data),
                "model": config.model.model_copy(update=model),
                "storage": storage_of(args, config.storage),
            }
        ),
        tokenizer=tokenizer or None,
        with_images=not args.no_images,
        with_urls=args.urls,
        upscale=args.upscale,
        near_bits=args.near_bits,
        threads=max(1, args.threads),
        progress=_Counter(),
    )


def _path_or_url(text: str) -> str:
    from flowloom.storage.local_copy import is_url

    return text if is_url(text) else str(local_path(text))


def _numbers(text: str) -> list[int]:
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
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
