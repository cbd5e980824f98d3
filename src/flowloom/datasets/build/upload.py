"""A data set into an object store: pictures, then a JSONL that names them there. Resumable and checked."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from flowloom.datasets.build.items import Unusable, reason_of, stamp_of
from flowloom.datasets.build.readers.listing import address
from flowloom.datasets.build.rows import FlowRow, flow_rows, image_folder
from flowloom.datasets.build.state import State
from flowloom.datasets.build.stores import Entry, Store
from flowloom.errors import DataError
from flowloom.storage.local import find_image

THREADS = 16
AHEAD = 64
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass
class UploadReport:
    """What became of a data set's files."""

    url: str
    output: Path
    """The JSONL with the new names, on this machine; a copy of it lies beside the pictures."""
    num_rows: int = 0
    num_sent: int = 0
    num_there: int = 0
    """Pictures that were there already, equal by size and checksum."""
    num_bytes: int = 0
    unusable: list[Unusable] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sent:
    """A row's picture, safe in the store."""

    row: FlowRow
    name: str
    size: int
    digest: str
    is_new: bool
    stamp: str


class Uploader:
    """Sends one JSONL's pictures to `store`, opened at `url`."""

    def __init__(self, jsonl: Path, url: str, store: Store, images_dir: Path | None = None):
        self.jsonl = jsonl
        self.url = url
        self.store = store
        self.folder = image_folder(jsonl, images_dir)
        self._there: dict[str, Entry] = {}
        self._digests: dict[str, tuple[str, str]] = {}

    def upload(
        self, output: Path, public_url: str, on_progress: Callable[[UploadReport], None]
    ) -> UploadReport:
        """Send what is not there, compare all with a fresh listing, then write and send the JSONL.

        A rerun after an interruption sends the rest.

        Args:
            output: the JSONL with new names; its `.sent` beside it remembers what was sent.
            public_url: under which the store is read when training; "": the address of the store itself.

        Raises:
            DataError: there is nothing to upload, or the listing shows that something is missing.
            SourceError: the store cannot be reached or refuses.
        """
        report = UploadReport(self.url, output)
        started = time.perf_counter()
        if output.resolve() == self.jsonl.resolve():
            raise DataError(f"{output} is what is uploaded: name another file for the new names.")
        names = {entry.name: entry for entry in self.store.list("")}
        self._there = names
        partial = output.with_name(f"{output.name}.{os.getpid()}.tmp")
        sent_sizes: dict[str, tuple[int, str]] = {}
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with State(output.with_name(f"{output.name}.sent")) as state, partial.open("wb") as file:
                for row, sent in self._send_all(state, report, on_progress):
                    if sent:
                        sent_sizes[sent.name] = sent.size, sent.digest
                        url = address(public_url or self.url, sent.name)
                        row = FlowRow(row.place, row.fields | {"filename": url, "is_url_based": True})
                    file.write(orjson.dumps(row.fields) + b"\n")
                    report.num_rows += 1
            report.seconds = time.perf_counter() - started
            if not report.num_rows:
                first = (
                    f" {report.unusable[0].place}: {report.unusable[0].reason}." if report.unusable else ""
                )
                raise DataError(f"{self.jsonl}: there is nothing to upload.{first}")
            self._check(sent_sizes)
            partial.replace(output)
            self.store.write(output.name, output)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{output}, or what lies beside it, cannot be written: {error}.") from error
        finally:
            with suppress(OSError):
                partial.unlink()
        return report

    def _send_all(
        self, state: State, report: UploadReport, on_progress: Callable[[UploadReport], None]
    ) -> Iterator[tuple[FlowRow, _Sent | None]]:
        """Each good row, in order, with its picture in the store; None with rows that are URLs already."""
        waiting: deque[tuple[FlowRow, Future[_Sent | Unusable] | None]] = deque()
        sending: dict[str, Future[_Sent | Unusable]] = {}
        with ThreadPoolExecutor(THREADS, thread_name_prefix="dataset upload") as pool:
            try:
                for row in flow_rows(self.jsonl):
                    if isinstance(row, Unusable):
                        report.unusable.append(row)
                        continue
                    future = None
                    if not row.is_url_based:
                        if row.filename not in sending:
                            self._remember(row.filename, state)
                            sending[row.filename] = pool.submit(self._send, row)
                        future = sending[row.filename]
                    waiting.append((row, future))
                    if len(waiting) > AHEAD:
                        yield from self._settle(*waiting.popleft(), state, report)
                        on_progress(report)
                while waiting:
                    yield from self._settle(*waiting.popleft(), state, report)
                    on_progress(report)
            finally:
                pool.shutdown(cancel_futures=True)

    def _remember(self, filename: str, state: State) -> None:
        """What an earlier upload knows of a file, looked up here as the state is for one thread."""
        key = self._key(filename)
        found = state.look_up([key])
        if key in found:
            self._digests[filename] = found[key]

    def _key(self, filename: str) -> str:
        return f"{self.url} {filename}"

    def _settle(
        self, row: FlowRow, future: Future[_Sent | Unusable] | None, state: State, report: UploadReport
    ) -> Iterator[tuple[FlowRow, _Sent | None]]:
        if future is None:
            yield row, None
            return
        sent = future.result()
        if isinstance(sent, Unusable):
            report.unusable.append(Unusable(row.place, sent.reason))
            return
        if sent.row is row:
            report.num_sent += sent.is_new
            report.num_there += not sent.is_new
            report.num_bytes += sent.size * sent.is_new
            state.keep([(self._key(row.filename), sent.stamp, sent.digest)])
        yield row, sent

    def _send(self, row: FlowRow) -> _Sent | Unusable:
        try:
            path = find_image(self.folder, row.filename)
            stamp, size = stamp_of(path.stat()), path.stat().st_size
            known_stamp, digest = self._digests.pop(row.filename, ("", ""))
            if known_stamp != stamp:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "md5").hexdigest()
        except DataError as error:
            return Unusable(row.place, f"{row.filename}: {error}")
        except OSError as error:
            return Unusable(row.place, f"{row.filename}: {reason_of(error)}")
        name = path.relative_to(self.folder).as_posix()
        is_new = not self._is_same(self._there.get(name), size, digest, known_stamp == stamp)
        if is_new:
            self.store.write(name, path)
        return _Sent(row, name, size, digest, is_new, stamp)

    def _is_same(self, entry: Entry | None, size: int, digest: str, was_sent: bool) -> bool:
        """Whether the object is the file: by checksum where the store has one, or else as it was sent."""
        if entry is None or entry.size != size:
            return False
        etag = (entry.etag or "").strip('"')
        return etag == digest if _MD5.fullmatch(etag) else was_sent

    def _check(self, sent: dict[str, tuple[int, str]]) -> None:
        names = {entry.name: entry for entry in self.store.list("")}
        wrong = [
            name
            for name, (size, digest) in sent.items()
            if not self._is_same(names.get(name), size, digest, was_sent=True)
        ]
        if wrong:
            listed = "".join(f"\n  {name}" for name in wrong[:20])
            raise DataError(
                f"{self.url}: {len(wrong)} of {len(sent)} pictures are not there as sent. Run it again; "
                f"if it stays so, the store changes what it is given.{listed}"
            )
