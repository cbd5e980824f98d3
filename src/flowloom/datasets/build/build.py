"""Any data set to FLOW's JSONL: read in order, measured by headers, written whole or not at all."""

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

from flowloom.datasets.build.items import NAMES_NO_IMAGE, Found, Held, Item, Reading, Unusable
from flowloom.datasets.build.open import open_dataset
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.listing import address
from flowloom.datasets.build.settle import Known, Row, Settled, Settler
from flowloom.datasets.build.state import SUFFIX, State
from flowloom.errors import DataError

CHUNK, CHUNK_REMOTE = 512, 16
"""Items looked up, read and written together; fewer where each is a wait for a store."""
CHUNK_BYTES = 2**26
"""Less of them when they hold their pictures in memory."""
THREADS, THREADS_REMOTE = 4, 64
"""That each take a chunk, where the user does not say."""
EXAMPLES = 5


class Recipe(BaseModel):
    """How a JSONL was built: enough to build it again."""

    source: str
    """Absolute, where it is a path."""
    options: BuildOptions
    digest: str
    """Of the JSONL as it was written."""


@dataclass
class BuildReport:
    """What became of a source."""

    source: str
    output: Path
    kind: str = ""
    why: str = ""
    """What shows that it is of this kind; "" where the user said so."""
    root: Path | None = None
    """Training's image_folder_path; None when every row is a URL."""
    num_rows: int = 0
    num_images: int = 0
    num_read: int = 0
    """Pictures whose header was read; the others were known from earlier builds."""
    num_tag_based: int = 0
    num_local: int = 0
    """Rows that name a file and not an address."""
    unusable: list[Unusable] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Places of the first few of each remark."""
    seconds: float = 0.0
    problems_path: Path | None = None
    """Where everything unusable is listed, one JSON object a line; None when there is nothing."""


def build(
    source: str, output: Path, options: BuildOptions, on_progress: Callable[[BuildReport], None]
) -> BuildReport:
    """Write the data set `source` as FLOW's JSONL to `output`, replacing it at the end.

    Beside it: `.state`, from which a rerun knows what did not change, and `.problems` with everything that
    did not become a row.

    Raises:
        DataError: the source cannot be read, or not one row came of it; `output` is as it was.
        SourceError: the store cannot be reached.
    """
    return build_from(open_dataset(source, options), BuildReport(source, output), options, on_progress)


def build_from(
    reading: Reading, report: BuildReport, options: BuildOptions, on_progress: Callable[[BuildReport], None]
) -> BuildReport:
    """`build` for a source that has been opened."""
    started, output = time.perf_counter(), report.output
    items, first = _with_first(reading.items)
    is_inside, is_remote = first is not None and first.is_inside, first is not None and first.is_url_based
    chunks = _chunks(_named_apart(items, is_inside), CHUNK_REMOTE if is_remote else CHUNK)
    threads = options.threads or (THREADS_REMOTE if is_remote else THREADS)
    root = _extract_dir(output, options) if is_inside else reading.root
    report.kind, report.why, report.root = reading.kind, reading.why, root
    settler = Settler(options, root)
    partial = output.with_name(f"{output.name}.{secrets.token_hex(6)}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with State(output.with_name(f"{output.name}{SUFFIX}")) as state, partial.open("wb") as file:
            digest = _digest()
            for settled in _settle_all(chunks, settler, state, threads):
                for row in _count(settled, report):
                    line = _line(row, options)
                    file.write(line)
                    digest.update(line)
                state.keep(settled.learned)
                report.seconds = time.perf_counter() - started
                on_progress(report)
            report.root = root if report.num_local else None
            state.keep_root(report.root)
            # What an update reads must not depend on what came beside the images since.
            same = replace(options, kind=reading.kind)
            recipe = Recipe(source=absolute(report.source), options=same, digest=digest.hexdigest())
            if report.num_rows:
                state.keep_recipe(recipe.model_dump_json())
        _finish(report, partial)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{output}, or what lies beside it, cannot be written: {error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return report


def lines_now(reading: Reading, options: BuildOptions, state: State) -> Iterator[bytes]:
    """The lines that a build of `reading`, whose images are files, would write now; nothing is written.

    Args:
        state: of an earlier build, of which files that did not change are known.
    """
    settler = Settler(options, reading.root)
    for settled in _settle_all(_chunks(reading.items, CHUNK), settler, state, options.threads or THREADS):
        for row in settled.rows:
            yield from _line(row, options).splitlines(keepends=True)


def _digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def digest_of_lines(lines: Iterable[bytes]) -> str:
    """`digest_of` a file of these lines."""
    digest = _digest()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """The digest of the bytes of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _digest).hexdigest()


def absolute(source: str) -> str:
    """`source` as it can be named from anywhere."""
    return source if "://" in source else str(Path(source).absolute())


def _with_first(items: Iterator[Found]) -> tuple[Iterator[Found], Item | None]:
    """The items again, and the first picture among them: they are all of one kind."""
    seen: list[Found] = []
    for item in items:
        seen.append(item)
        if isinstance(item, Item):
            return chain(seen, items), item
    return iter(seen), None


def _extract_dir(output: Path, options: BuildOptions) -> Path:
    """Where pictures out of archives and tables go."""
    beside = output.with_name(f"{output.stem}-images")
    return (options.extract_dir or beside).absolute()


def _settle_all(
    chunks: Iterator[list[Found]], settler: Settler, state: State, threads: int
) -> Iterator[Settled]:
    waiting: deque[Future[Settled]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="dataset build") as pool:
        for chunk in chunks:
            waiting.append(pool.submit(settler.settle, chunk, _known(chunk, state)))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _chunks(items: Iterator[Found], size: int) -> Iterator[list[Found]]:
    chunk: list[Found] = []
    held = 0
    for found in items:
        chunk.append(found)
        if isinstance(found, Item) and isinstance(found.picture, Held):
            held += len(found.picture.data)
        if len(chunk) == size or held > CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _named_apart(items: Iterator[Found], is_inside: bool) -> Iterator[Found]:
    """Pictures that are written out get names that differ, by more than suffix and case: FLOW takes a .jxl
    of the same stem for the picture, and some file systems take A for a."""
    taken: set[str] = set()
    for item in items:
        if not isinstance(item, Item) or item.picture is None or item.is_inside != is_inside:
            is_other = isinstance(item, Item) and item.picture is not None
            reason = "pictures inside and outside of the source cannot be relative to one folder"
            yield Unusable(item.place, reason) if is_other else item
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


def _known(chunk: list[Found], state: State) -> Known:
    contents = (
        content
        for item in chunk
        if isinstance(item, Item)
        for content in (item.picture, item.sidecar)
        if content is not None
    )
    return state.look_up(content.key for content in contents)


def _count(settled: Settled, report: BuildReport) -> Iterator[Row]:
    report.unusable += settled.unusable
    report.num_read += settled.num_read
    for remark in settled.remarks:
        report.remarks[remark.text] += 1
        if len(report.examples[remark.text]) < EXAMPLES:
            report.examples[remark.text].append(remark.place)
    for row in settled.rows:
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
    """List what is unusable in a file beside `output`; None, and no such file, when there is nothing."""
    path = output.with_name(f"{output.name}.problems")
    path.unlink(missing_ok=True)
    if not unusable:
        return None
    lines = (orjson.dumps({"place": bad.place, "reason": bad.reason}) for bad in unusable)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _finish(report: BuildReport, partial: Path) -> None:
    report.problems_path = write_problems(report.output, report.unusable)
    if not report.num_rows:
        first = report.unusable[:1]
        why = f" The first of {len(report.unusable)}: {first[0].place}: {first[0].reason}." if first else ""
        tables = ", ".join(report.examples.get(NAMES_NO_IMAGE, ()))
        why += f" {tables}: {NAMES_NO_IMAGE}." * bool(tables)
        raise DataError(f"{report.source}: not one picture with a caption was found as {report.kind}.{why}")
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(report.output)
