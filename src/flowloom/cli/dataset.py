"""`flowloom dataset VERB`: parse arguments, call one function of datasets/build, print its report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.cli.lint import LINT_VERBS, add_storage, storage_of
from flowloom.config.local_paths import with_local_paths
from flowloom.printable import printable

if TYPE_CHECKING:
    from flowloom.datasets.build.build import BuildReport
    from flowloom.datasets.build.items import Unusable

OK, WRONG = 0, 2
SHOWN = 10
"""Unusable items that are printed; the file that is named lists all."""
KINDS = ("folder", "kohya", "kohya-toml", "table", "parquet", "webdataset", "huggingface", "listing")


def dataset(arguments: Sequence[str]) -> int:
    """Run the verb at the start of `arguments`; the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {verb:<8} {line}" for verb, (line, _) in VERBS.items())
        print(
            "usage: flowloom dataset VERB ...\n\nImages and captions to FLOW's JSONL, and back.\n\n"
            f"{lines}\n\n'flowloom dataset VERB --help' shows the options of a verb."
        )
        return OK
    if arguments[0] not in VERBS:
        verbs = ", ".join(VERBS)
        print(f"flowloom: there is no verb 'dataset {arguments[0]}'. Verbs: {verbs}.", file=sys.stderr)
        return WRONG
    return VERBS[arguments[0]][1](list(arguments[1:]))


def _build(arguments: list[str]) -> int:
    parser = _parser("build", "SOURCE -o FILE.jsonl [options]")
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder, Kohya's folders or TOML, CSV, JSON(L), parquet, tars, "
        "a saved Hugging Face dataset, or s3://, gs://, az://, http(s):// with images")  # fmt: skip
    add("-o", "--out", type=Path, required=True, metavar="FILE.jsonl", help="replaced at the end")
    form = "format of SOURCE; default: detected. kohya: numbers in folder names are repeats"
    add("--from", "--format", dest="kind", choices=KINDS, default="auto", metavar="FORM", help=form)
    add(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder that file names are relative to; default: the source's",
    )
    add("--url-prefix", default="", metavar="URL", help="names become URL/NAME: s3://bucket/set, https://...")
    add("--images", type=Path, metavar="DIR", help="for images inside archives; default: next to FILE.jsonl")
    add(
        "--captions",
        choices=("auto", "tags", "prose"),
        default="auto",
        help="default: detected for each caption",
    )
    add("--caption", metavar="TEXT", help="caption of images without one; default: they are reported")
    add("--caption-suffixes", default=".txt,.caption,.json", metavar="LIST", help="default: %(default)s")
    add(
        "--each-line",
        action="store_true",
        help="each line of a text file is a caption; they alternate over epochs",
    )
    add("--caption-encoding", default="utf-8", metavar="NAME", help="default: utf-8; cp1252, shift_jis ...")
    add("--caption-column", default="", metavar="NAME", help="column of tables; default: the usual names")
    add("--filename-column", default="", metavar="NAME", help="column of tables; default: the usual names")
    add("--image-column", default="", metavar="NAME", help="column of tables with images inside")
    add("--references", type=Path, action="append", default=[], metavar="DIR", help="folder with images of "
        "the same names that these were edited from; repeatable")  # fmt: skip
    add("--no-videos", action="store_true", help="read images only")
    add("--scenes", action="store_true", help="cut videos into clips at scene changes")
    add("--clip-seconds", type=_seconds, metavar="S", help="cut videos, or their scenes, every S seconds")
    add("--split", default="", metavar="NAME", help="split of a Hugging Face dataset; default: train")
    add(
        "--loss-weight",
        type=_weight,
        default=1.0,
        metavar="W",
        help="loss weight if none is recorded; default: 1",
    )
    add(
        "--reg-weight",
        type=_weight,
        default=1.0,
        metavar="W",
        help="loss weight of Kohya's regularisation images; default: 1",
    )
    add("--no-repeats", action="store_true", help="one row per image, ignoring Kohya's repeats")
    add("--threads", type=_count, metavar="N", help="default: 4, for stores 64")
    add_storage(parser)
    args = parser.parse_args(arguments)
    _check_encoding(parser, args.caption_encoding)

    from flowloom.datasets.build.build import build
    from flowloom.datasets.build.options import BuildOptions

    options = BuildOptions(
        kind=args.kind,
        root=args.root,
        url_prefix=args.url_prefix,
        extract_dir=args.images,
        caption_suffixes=tuple(_suffix(text) for text in args.caption_suffixes.split(",")),
        caption_encoding=args.caption_encoding,
        default_caption=args.caption,
        each_line=args.each_line,
        is_tag_based={"auto": None, "tags": True, "prose": False}[args.captions],
        loss_weight=args.loss_weight,
        reg_weight=args.reg_weight,
        with_repeats=not args.no_repeats,
        filename_column=args.filename_column,
        caption_column=args.caption_column,
        image_column=args.image_column,
        split=args.split,
        reference_dirs=tuple(args.references),
        with_videos=not args.no_videos,
        with_scenes=args.scenes,
        clip_s=args.clip_seconds,
        threads=args.threads,
        storage=storage_of(args),
    )
    with _Ticker("images") as ticker:
        report = build(args.source, args.out, options, lambda report: ticker.tick(report.num_images))
    _print_build(report)
    return OK


def _update(arguments: list[str]) -> int:
    parser = _parser("update", "FILE.jsonl")
    parser.add_argument("jsonl", type=Path, metavar="FILE.jsonl", help="built from a folder before")
    args = parser.parse_args(arguments)

    from flowloom.datasets.build.update import update

    with _Ticker("images") as ticker:
        report = update(args.jsonl, lambda report: ticker.tick(report.num_images))
    _print_build(report)
    return OK


def _print_build(report: BuildReport) -> None:
    rate = f"{report.num_images / max(report.seconds, 1e-9):,.0f}/s"
    prose = report.num_rows - report.num_tag_based
    print(printable(f"source     {report.source} ({report.kind})"))
    if report.why:
        print(f"detected   {report.kind}: {report.why}")
    print(f"images     {report.num_images:,}, {report.num_read:,} of them read; {rate}")
    print(f"rows       {report.num_rows:,}: {report.num_tag_based:,} tags, {prose:,} prose")
    _print_counted("remarks", report.remarks, report.examples)
    _print_unusable(report.unusable, report.problems_path)
    print(f"written    {report.output}")
    if report.root:
        print(f"images     {report.root} (dataloader.image_folder_path)")


def _export(arguments: list[str]) -> int:
    parser = _parser("export", "FILE.jsonl --to FORM -o OUT [options]")
    add = parser.add_argument
    add("jsonl", type=Path, metavar="FILE.jsonl", help="FLOW's JSONL")
    forms = "kohya: folders; kohya-toml: FILE.toml, no copies; webdataset: a folder of tars; parquet: a file"
    add("--to", choices=("kohya", "kohya-toml", "webdataset", "parquet"), required=True, help=forms)
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="folder or file to write")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder that file names are relative to; default: as recorded by the build",
    )
    add(
        "--link",
        choices=("copy", "hard", "soft"),
        default="copy",
        help="kohya: copy or link images; default: copy",
    )
    add("--name", default="", metavar="NAME", help="kohya, webdataset: name; default: that of FILE.jsonl")
    add(
        "--shard-mib", type=_count, default=1024, metavar="N", help="webdataset: size of a tar; default: 1024"
    )
    add("--without-images", action="store_true", help="parquet: only names and captions")
    add_storage(parser)
    args = parser.parse_args(arguments)

    from flowloom.datasets.build.export import ExportOptions, export

    options = ExportOptions(
        images_dir=args.images,
        link=args.link,
        name=args.name,
        shard_mib=args.shard_mib,
        with_images=not args.without_images,
        storage=storage_of(args),
    )
    with _Ticker("rows") as ticker:
        report = export(args.jsonl, args.to, args.out, options, lambda report: ticker.tick(report.num_rows))
    print(f"rows       {report.num_rows:,} in {report.seconds:,.1f} s")
    _print_counted("remarks", report.remarks, {})
    _print_unusable(report.unusable, _listed(args.out, report.unusable))
    print(f"written    {report.output}")
    return OK


def _upload(arguments: list[str]) -> int:
    parser = _parser("upload", "FILE.jsonl URL [-o NEW.jsonl] [options]")
    add = parser.add_argument
    add("jsonl", type=Path, metavar="FILE.jsonl", help="FLOW's JSONL, its images on this machine")
    add("url", metavar="URL", help="s3://bucket/prefix, gs://..., az://...; keys come from the environment")
    add(
        "-o",
        "--out",
        type=Path,
        metavar="NEW.jsonl",
        help="the JSONL with the new names; default: FILE.remote.jsonl",
    )
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder that file names are relative to; default: as recorded by the build",
    )
    add("--public-url", default="", metavar="URL", help="write names below this https://... URL instead")
    add_storage(parser)
    args = parser.parse_args(arguments)

    from flowloom.datasets.build.stores import open_store
    from flowloom.datasets.build.upload import Uploader

    out = args.out or args.jsonl.with_name(f"{args.jsonl.stem}.remote.jsonl")
    store = open_store(args.url, storage_of(args))
    uploader = Uploader(args.jsonl, args.url, store, args.images)
    with _Ticker("rows") as ticker:
        report = uploader.upload(out, args.public_url, lambda report: ticker.tick(report.num_rows))
    size = f"{report.num_bytes / 2**20:,.1f} MiB in {report.seconds:,.1f} s"
    print(f"images     {report.num_sent:,} sent ({size}), {report.num_unchanged:,} unchanged")
    _print_unusable(report.unusable, _listed(out, report.unusable))
    print(printable(f"written    {report.output}, and next to the images at {report.url}"))
    return OK


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "build": (
        "writes FLOW's JSONL from a folder, Kohya's, a table, tars, a Hugging Face dataset, a bucket",
        _build,
    ),
    "update": ("builds a JSONL again from its folder, after captions or images changed", _update),
    "export": ("writes a JSONL's dataset for Kohya, as webdataset or as parquet", _export),
    "upload": ("uploads a JSONL's images to a bucket, with a JSONL that names them there", _upload),
} | LINT_VERBS


def _parser(verb: str, usage: str) -> argparse.ArgumentParser:
    about = f"{verb.capitalize()}: {VERBS[verb][0]}."
    return with_local_paths(
        argparse.ArgumentParser(
            f"flowloom dataset {verb}", f"flowloom dataset {verb} {usage}", about, allow_abbrev=False
        )
    )


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text}")
    return weight


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 1 or more, not {text}")
    return seconds


def _suffix(text: str) -> str:
    return f".{text.strip().lstrip('.').lower()}"


def _check_encoding(parser: argparse.ArgumentParser, name: str) -> None:
    try:
        "x".encode(name)
    except LookupError:
        parser.error(f"argument --caption-encoding: there is no encoding {name}")


def _print_counted(title: str, counts: Any, examples: dict[str, list[str]]) -> None:
    for text, count in counts.most_common():
        places = f": {', '.join(examples[text])}" if examples.get(text) else ""
        more = ", ..." if examples.get(text) and count > len(examples[text]) else ""
        print(f"{title:<10} {count:,} x {text}{places}{more}")


def _print_unusable(unusable: list[Unusable], path: Path | None) -> None:
    if not unusable:
        return
    print(f"unusable   {len(unusable):,}, all listed in {path}")
    for bad in unusable[:SHOWN]:
        print(f"  {bad.where}: {bad.reason}")
    if len(unusable) > SHOWN:
        print(f"  ... and {len(unusable) - SHOWN:,} more")


def _listed(output: Path, unusable: list[Unusable]) -> Path | None:
    from flowloom.datasets.build.build import write_problems

    return write_problems(output, unusable)


class _Ticker:
    """A line that counts, on a terminal; otherwise nothing."""

    def __init__(self, unit: str):
        self.unit = unit
        self._is_shown = sys.stderr.isatty()
        self._last = 0.0

    def __enter__(self) -> _Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            sys.stderr.write("\r\033[K")

    def tick(self, count: int) -> None:
        """Print the count, a few times per second."""
        now = time.monotonic()
        if self._is_shown and now - self._last > 0.2:
            self._last = now
            sys.stderr.write(f"\r{count:,} {self.unit}\033[K")
            sys.stderr.flush()
