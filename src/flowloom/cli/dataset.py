"""`flowloom dataset VERB`: parses, calls one function of data/prepare, prints what it says."""

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
"""Unusable things printed; all of them are in the file that is named."""
KINDS = ("folder", "kohya", "kohya-toml", "table", "parquet", "webdataset", "huggingface", "listing")


def dataset(words: Sequence[str]) -> int:
    """Run the verb that `words` begin with; the exit status."""
    if not words or words[0] in ("-h", "--help"):
        lines = "\n".join(f"  {verb:<8} {line}" for verb, (line, _) in VERBS.items())
        print(
            "usage: flowloom dataset VERB ...\n\nImages and captions to FLOW's JSONL, and back.\n\n"
            f"{lines}\n\n'flowloom dataset VERB --help' shows more of each."
        )
        return OK
    if words[0] not in VERBS:
        known = ", ".join(VERBS)
        print(f"flowloom: there is no verb 'dataset {words[0]}', but {known}.", file=sys.stderr)
        return WRONG
    return VERBS[words[0]][1](list(words[1:]))


def _build(words: list[str]) -> int:
    parser = _parser("build", "SOURCE -o FILE.jsonl [options]")
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder, Kohya's folders or TOML, CSV, JSON(L), parquet, tars, "
        "a saved Hugging Face dataset, or s3://, gs://, az://, http(s):// with images")  # fmt: skip
    add("-o", "--out", type=Path, required=True, metavar="FILE.jsonl", help="replaced when all is read")
    form = "how to read SOURCE; default: seen from it. kohya: numbers of folders are repeats"
    add("--from", "--format", dest="kind", choices=KINDS, default="auto", metavar="FORM", help=form)
    add("--root", type=Path, metavar="DIR", help="what names are relative to; default: the source's folder")
    add("--url-prefix", default="", metavar="URL", help="names become URL/name: s3://bucket/set, https://...")
    add("--images", type=Path, metavar="DIR", help="for images inside archives; default: next to FILE.jsonl")
    add("--captions", choices=("auto", "tags", "prose"), default="auto", help="default: seen from each one")
    add("--caption", metavar="TEXT", help="for images without a caption; default: they are reported")
    add("--caption-suffixes", default=".txt,.caption,.json", metavar="LIST", help="default: %(default)s")
    add("--each-line", action="store_true", help="of a text file is a caption; they alternate over epochs")
    add("--caption-encoding", default="utf-8", metavar="NAME", help="default: utf-8; cp1252, shift_jis ...")
    add("--caption-column", default="", metavar="NAME", help="of tables; default: the usual names")
    add("--filename-column", default="", metavar="NAME", help="of tables; default: the usual names")
    add("--image-column", default="", metavar="NAME", help="of tables with images inside")
    add("--split", default="", metavar="NAME", help="of a Hugging Face dataset; default: train")
    add("--loss-weight", type=_weight, default=1.0, metavar="W", help="where none is recorded; default: 1")
    add("--reg-weight", type=_weight, default=1.0, metavar="W", help="of Kohya's regularisation; default: 1")
    add("--no-repeats", action="store_true", help="one row per image, ignoring Kohya's repeats")
    add("--threads", type=_count, metavar="N", help="more for slow disks; default: 4, for stores 64")
    add_storage(parser)
    asked = parser.parse_args(words)
    _check_encoding(parser, asked.caption_encoding)

    from flowloom.datasets.build.build import build
    from flowloom.datasets.build.options import BuildOptions

    options = BuildOptions(
        kind=asked.kind,
        root=asked.root,
        url_prefix=asked.url_prefix,
        extract_dir=asked.images,
        caption_suffixes=tuple(_suffix(word) for word in asked.caption_suffixes.split(",")),
        caption_encoding=asked.caption_encoding,
        default_caption=asked.caption,
        each_line=asked.each_line,
        is_tag_based={"auto": None, "tags": True, "prose": False}[asked.captions],
        loss_weight=asked.loss_weight,
        reg_weight=asked.reg_weight,
        with_repeats=not asked.no_repeats,
        filename_column=asked.filename_column,
        caption_column=asked.caption_column,
        image_column=asked.image_column,
        split=asked.split,
        threads=asked.threads,
        storage=storage_of(asked),
    )
    with _Ticker("images") as ticker:
        report = build(asked.source, asked.out, options, lambda report: ticker.tick(report.num_images))
    _print_build(report)
    return OK


def _update(words: list[str]) -> int:
    parser = _parser("update", "FILE.jsonl")
    parser.add_argument("jsonl", type=Path, metavar="FILE.jsonl", help="built from a folder before")
    asked = parser.parse_args(words)

    from flowloom.datasets.build.update import update

    with _Ticker("images") as ticker:
        report = update(asked.jsonl, lambda report: ticker.tick(report.num_images))
    _print_build(report)
    return OK


def _print_build(report: BuildReport) -> None:
    rate = f"{report.num_images / max(report.seconds, 1e-9):,.0f}/s"
    prose = report.num_rows - report.num_tag_based
    print(printable(f"source     {report.source} ({report.kind})"))
    if report.why:
        print(f"detected   {report.kind}: {report.why}")
    print(f"images     {report.num_images:,}, {report.num_read:,} of them read again; {rate}")
    print(f"rows       {report.num_rows:,}: {report.num_tag_based:,} tags, {prose:,} prose")
    _print_counted("remarks", report.remarks, report.examples)
    _print_unusable(report.unusable, report.problems_path)
    print(f"written    {report.output}")
    if report.root:
        print(f"images     {report.root} (dataloader.image_folder_path)")


def _export(words: list[str]) -> int:
    parser = _parser("export", "FILE.jsonl --to FORM -o OUT [options]")
    add = parser.add_argument
    add("jsonl", type=Path, metavar="FILE.jsonl", help="FLOW's JSONL")
    forms = "kohya: folders; kohya-toml: FILE.toml, images stay; webdataset: a folder of tars; parquet: one"
    add("--to", choices=("kohya", "kohya-toml", "webdataset", "parquet"), required=True, help=forms)
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="folder or file to write")
    add("--images", type=Path, metavar="DIR", help="what names are relative to; default: as it was built")
    add("--link", choices=("copy", "hard", "soft"), default="copy", help="kohya: images; default: copy")
    add("--name", default="", metavar="NAME", help="kohya, webdataset: default: that of FILE.jsonl")
    add(
        "--shard-mib", type=_count, default=1024, metavar="N", help="webdataset: size of a tar; default: 1024"
    )
    add("--without-images", action="store_true", help="parquet: names and captions alone")
    add_storage(parser)
    asked = parser.parse_args(words)

    from flowloom.datasets.build.export import ExportOptions, export

    options = ExportOptions(
        images_dir=asked.images,
        link=asked.link,
        name=asked.name,
        shard_mib=asked.shard_mib,
        with_images=not asked.without_images,
        storage=storage_of(asked),
    )
    with _Ticker("rows") as ticker:
        report = export(
            asked.jsonl, asked.to, asked.out, options, lambda report: ticker.tick(report.num_rows)
        )
    print(f"rows       {report.num_rows:,} in {report.seconds:,.1f} s")
    _print_counted("remarks", report.remarks, {})
    _print_unusable(report.unusable, _listed(asked.out, report.unusable))
    print(f"written    {report.output}")
    return OK


def _upload(words: list[str]) -> int:
    parser = _parser("upload", "FILE.jsonl URL [-o NEW.jsonl] [options]")
    add = parser.add_argument
    add("jsonl", type=Path, metavar="FILE.jsonl", help="FLOW's JSONL, its images on this machine")
    add("url", metavar="URL", help="s3://bucket/prefix, gs://..., az://...; keys come from the environment")
    add(
        "-o",
        "--out",
        type=Path,
        metavar="NEW.jsonl",
        help="the rows with their new names; default: FILE.remote.jsonl",
    )
    add("--images", type=Path, metavar="DIR", help="what names are relative to; default: as it was built")
    add("--public-url", default="", metavar="URL", help="write https://... names in place of URL's")
    add_storage(parser)
    asked = parser.parse_args(words)

    from flowloom.datasets.build.stores import open_store
    from flowloom.datasets.build.upload import Uploader

    out = asked.out or asked.jsonl.with_name(f"{asked.jsonl.stem}.remote.jsonl")
    store = open_store(asked.url, storage_of(asked))
    uploader = Uploader(asked.jsonl, asked.url, store, asked.images)
    with _Ticker("rows") as ticker:
        report = uploader.upload(out, asked.public_url, lambda report: ticker.tick(report.num_rows))
    size = f"{report.num_bytes / 2**20:,.1f} MiB in {report.seconds:,.1f} s"
    print(f"images     {report.num_sent:,} sent ({size}), {report.num_unchanged:,} were there")
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
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text}")
    return int(text)


def _suffix(word: str) -> str:
    return f".{word.strip().lstrip('.').lower()}"


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
    """One line that counts, on a terminal; nothing elsewhere."""

    def __init__(self, what: str):
        self.what = what
        self._is_shown = sys.stderr.isatty()
        self._last = 0.0

    def __enter__(self) -> _Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            sys.stderr.write("\r\033[K")

    def tick(self, count: int) -> None:
        """Say how far it is, a few times a second."""
        now = time.monotonic()
        if self._is_shown and now - self._last > 0.2:
            self._last = now
            sys.stderr.write(f"\r{count:,} {self.what}\033[K")
            sys.stderr.flush()
