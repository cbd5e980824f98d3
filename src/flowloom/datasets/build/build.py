"""Build FLOW's JSONL from any dataset: sizes are read from headers, and the file is replaced at the end."""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from flowloom.datasets.build.items import NAMES_NO_IMAGE, InMemory, Item, OpenedSource, ReaderOutput, Unusable
from flowloom.datasets.build.open import open_dataset
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.listing import address
from flowloom.datasets.build.state import SUFFIX, BuildState
from flowloom.datasets.build.to_rows import MadeRows, Row, RowMaker, StateEntries
from flowloom.errors import DataError

CHUNK, CHUNK_REMOTE = 512, 16
"""Items looked up, read and written together; fewer for stores, where each item is a request."""
CHUNK_BYTES = 2**26
"""Size of a chunk at which it ends, if its images are in memory."""
THREADS, THREADS_REMOTE = 4, 64
"""Default number of threads, which process a chunk each."""
EXAMPLES = 5


class Recipe(BaseModel):
    """The source and options of a build, to build the JSONL again."""

    source: str
    """An absolute path, or a URL."""
    options: BuildOptions
    digest: str
    """Of the JSONL that was written."""


@dataclass
class BuildReport:
    """The result of a build."""

    source: str
    output: Path
    kind: str = ""
    why: str = ""
    """The reason for the detected kind; "" if the user chose it."""
    root: Path | None = None
    """Training's image_folder_path; None when every row is a URL."""
    num_rows: int = 0
    num_images: int = 0
    num_read: int = 0
    """Images whose header was read; sizes of the others are known from earlier builds."""
    num_tag_based: int = 0
    num_local: int = 0
    """Rows that name a file, not a URL."""
    unusable: list[Unusable] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Where each remark occurred first."""
    seconds: float = 0.0
    problems_path: Path | None = None
    """A list of everything unusable, one JSON object per line; None if there is nothing."""


def build(
    source: str, output: Path, options: BuildOptions, on_progress: Callable[[BuildReport], None]
) -> BuildReport:
    """Write the dataset `source` as FLOW's JSONL to `output`, replacing it at the end.

    It also writes `.state`, so that the next build reads only changed files, and `.problems`, a list of
    everything that did not become a row.

    Raises:
        DataError: the source cannot be read or has no usable row; `output` is unchanged.
        SourceError: the store cannot be reached.
    """
    return build_from(open_dataset(source, options), BuildReport(source, output), options, on_progress)


def build_from(
    opened: OpenedSource,
    report: BuildReport,
    options: BuildOptions,
    on_progress: Callable[[BuildReport], None],
) -> BuildReport:
    """`build` for an opened source."""
    started, output = time.perf_counter(), report.output
    items, first = _with_first(opened.items)
    is_inside, is_remote = first is not None and first.is_inside, first is not None and first.is_url_based
    chunks = _chunks(_with_distinct_names(items, is_inside), CHUNK_REMOTE if is_remote else CHUNK)
    threads = options.threads or (THREADS_REMOTE if is_remote else THREADS)
    root = _extract_dir(output, options) if is_inside else opened.root
    report.kind, report.why, report.root = opened.kind, opened.why, root
    row_maker = RowMaker(options, root)
    partial = output.with_name(f"{output.name}.{secrets.token_hex(6)}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with BuildState(output.with_name(f"{output.name}{SUFFIX}")) as state, partial.open("wb") as file:
            digest = _digest()
            for made in _make_all_rows(chunks, row_maker, state, threads):
                for row in _count(made, report):
                    line = _line(row, options)
                    file.write(line)
                    digest.update(line)
                state.put(made.state_entries)
                report.seconds = time.perf_counter() - started
                on_progress(report)
            report.root = root if report.num_local else None
            state.put_root(report.root)
            # An update must use the same reader even if other files were added since.
            resolved = replace(options, kind=opened.kind)
            recipe = Recipe(source=absolute(report.source), options=resolved, digest=digest.hexdigest())
            if report.num_rows:
                state.put_recipe(recipe.model_dump_json())
        _finish(report, partial)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{output} or a file next to it cannot be written: {error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return report


def lines_now(opened: OpenedSource, options: BuildOptions, state: BuildState) -> Iterator[bytes]:
    """The lines that a build of `opened`, whose images are files, would write now, without writing them.

    Args:
        state: of an earlier build; unchanged files are not read again.
    """
    row_maker = RowMaker(options, opened.root)
    for made in _make_all_rows(_chunks(opened.items, CHUNK), row_maker, state, options.threads or THREADS):
        for row in made.rows:
            yield from _line(row, options).splitlines(keepends=True)


def _digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def digest_of_lines(lines: Iterable[bytes]) -> str:
    """The digest of a file that consists of `lines`."""
    digest = _digest()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """The digest of the bytes of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _digest).hexdigest()


def absolute(source: str) -> str:
    """`source` as a URL or an absolute path."""
    return source if "://" in source else str(Path(source).absolute())


def _with_first(items: Iterator[ReaderOutput]) -> tuple[Iterator[ReaderOutput], Item | None]:
    """All of `items`, and the first `Item` among them, which shows how they are stored."""
    skipped: list[ReaderOutput] = []
    for item in items:
        skipped.append(item)
        if isinstance(item, Item):
            return chain(skipped, items), item
    return iter(skipped), None


def _extract_dir(output: Path, options: BuildOptions) -> Path:
    """The folder for images from archives and tables."""
    return (options.extract_dir or output.with_name(f"{output.stem}-images")).absolute()


def _make_all_rows(
    chunks: Iterator[list[ReaderOutput]], row_maker: RowMaker, state: BuildState, threads: int
) -> Iterator[MadeRows]:
    pending: deque[Future[MadeRows]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="dataset build") as pool:
        for chunk in chunks:
            pending.append(pool.submit(row_maker.make_rows, chunk, _known(chunk, state)))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _chunks(items: Iterator[ReaderOutput], size: int) -> Iterator[list[ReaderOutput]]:
    chunk: list[ReaderOutput] = []
    num_bytes = 0
    for item in items:
        chunk.append(item)
        if isinstance(item, Item) and isinstance(item.image, InMemory):
            num_bytes += len(item.image.data)
        if len(chunk) == size or num_bytes > CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _with_distinct_names(items: Iterator[ReaderOutput], is_inside: bool) -> Iterator[ReaderOutput]:
    """Items with distinct names, if their images are extracted. Names that differ only in suffix or case
    count as equal: FLOW reads a .jxl of the same stem instead, and some file systems ignore case."""
    taken: set[str] = set()
    for item in items:
        if not isinstance(item, Item) or item.image is None or item.is_inside != is_inside:
            is_other = isinstance(item, Item) and item.image is not None
            reason = "images inside and outside the source cannot be relative to one folder"
            yield Unusable(item.where, reason) if is_other else item
            continue
        if not is_inside:
            yield item
            continue
        stem, suffix = split_suffix(item.filename)
        number, name = 1, stem
        while name.casefold() in taken:
            number, name = number + 1, f"{stem}-{number + 1}"
        taken.add(name.casefold())
        yield item if number == 1 else replace(item, filename=name + suffix)


def _known(chunk: list[ReaderOutput], state: BuildState) -> StateEntries:
    contents = (
        content
        for item in chunk
        if isinstance(item, Item)
        for content in (item.image, item.sidecar)
        if content is not None
    )
    return state.get_all(content.key for content in contents)


def _count(made: MadeRows, report: BuildReport) -> Iterator[Row]:
    report.unusable += made.unusable
    report.num_read += made.num_read
    for remark in made.remarks:
        report.remarks[remark.text] += 1
        if len(report.examples[remark.text]) < EXAMPLES:
            report.examples[remark.text].append(remark.where)
    for row in made.rows:
        report.num_images += 1
        report.num_rows += row.repeats
        report.num_local += (not row.fields["is_url_based"]) * row.repeats
        report.num_tag_based += row.fields["is_tag_based"] * row.repeats
        yield row


def _line(row: Row, options: BuildOptions) -> bytes:
    fields: dict[str, Any] = row.fields
    if options.url_prefix and not fields["is_url_based"]:
        url = address(options.url_prefix, fields["filename"])
        fields = fields | {"filename": url, "is_url_based": True}
    return (orjson.dumps(fields) + b"\n") * row.repeats


def write_problems(output: Path, unusable: list[Unusable]) -> Path | None:
    """Write the list of unusable items beside `output`; None, and no file, if there are none."""
    path = output.with_name(f"{output.name}.problems")
    path.unlink(missing_ok=True)
    if not unusable:
        return None
    lines = (orjson.dumps({"where": bad.where, "reason": bad.reason}) for bad in unusable)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _finish(report: BuildReport, partial: Path) -> None:
    report.problems_path = write_problems(report.output, report.unusable)
    if not report.num_rows:
        first = report.unusable[:1]
        details = (
            f" The first of {len(report.unusable)}: {first[0].where}: {first[0].reason}." if first else ""
        )
        tables = ", ".join(report.examples.get(NAMES_NO_IMAGE, ()))
        details += f" {tables}: {NAMES_NO_IMAGE}." * bool(tables)
        raise DataError(
            f"{report.source}: no image with a caption was found by reading it as {report.kind}.{details}"
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(report.output)
