"""Upload a dataset to an object store: images, then a JSONL that names them there; resumable and verified."""

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

from flowloom.data.row_checks import REFERENCES, references_of
from flowloom.datasets.build.items import Unusable, reason_of, stamp_of
from flowloom.datasets.build.readers.listing import address
from flowloom.datasets.build.rows import FlowRow, flow_rows, image_folder
from flowloom.datasets.build.state import BuildState
from flowloom.datasets.build.stores import ListedObject, ObjectStore
from flowloom.errors import DataError
from flowloom.storage.local import find_image

THREADS = 16
AHEAD = 64
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass
class UploadReport:
    """The result of an upload."""

    url: str
    output: Path
    """The local JSONL with the new names; the store has a copy beside the images."""
    num_rows: int = 0
    num_sent: int = 0
    num_unchanged: int = 0
    """Images that were in the store already, equal by size and checksum."""
    num_bytes: int = 0
    unusable: list[Unusable] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sent:
    """A row's image in the store."""

    row: FlowRow
    name: str
    size: int
    digest: str
    is_new: bool
    stamp: str


class Uploader:
    """Sends one JSONL's images to `store`, opened at `url`."""

    def __init__(self, jsonl: Path, url: str, store: ObjectStore, images_dir: Path | None = None):
        self.jsonl = jsonl
        self.url = url
        self.store = store
        self.folder = image_folder(jsonl, images_dir)
        self._listed: dict[str, ListedObject] = {}
        self._digests: dict[str, tuple[str, str]] = {}
        self._references: dict[str, _Sent | Unusable] = {}

    def upload(
        self, output: Path, public_url: str, on_progress: Callable[[UploadReport], None]
    ) -> UploadReport:
        """Upload missing images, verify all with a new listing, then write and upload the JSONL.

        A rerun after an interruption uploads the rest.

        Args:
            output: the JSONL with new names; the file `.sent` beside it records uploaded images.
            public_url: URL of the store for training; "": the URL of the upload.

        Raises:
            DataError: there is nothing to upload, or an image is missing in the listing.
            SourceError: the store cannot be reached or refuses.
        """
        report = UploadReport(self.url, output)
        started = time.perf_counter()
        if output.resolve() == self.jsonl.resolve():
            raise DataError(f"{output} is the file to upload: choose another file for the new names.")
        names = {entry.name: entry for entry in self.store.list("")}
        self._listed = names
        partial = output.with_name(f"{output.name}.{os.getpid()}.tmp")
        sent_sizes: dict[str, tuple[int, str]] = {}
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with BuildState(output.with_name(f"{output.name}.sent")) as state, partial.open("wb") as file:
                for row, sent in self._send_all(state, report, on_progress):
                    fields = row.fields
                    if sent:
                        references = self._send_references(row, report)
                        if isinstance(references, Unusable):
                            report.unusable.append(references)
                            continue
                        sent_sizes |= {one.name: (one.size, one.digest) for one in (sent, *references)}
                        url, *others = (
                            address(public_url or self.url, one.name) for one in (sent, *references)
                        )
                        fields = fields | {"filename": url, "is_url_based": True}
                        fields |= {REFERENCES: others} if others else {}
                    file.write(orjson.dumps(fields) + b"\n")
                    report.num_rows += 1
            report.seconds = time.perf_counter() - started
            if not report.num_rows:
                first = (
                    f" {report.unusable[0].where}: {report.unusable[0].reason}." if report.unusable else ""
                )
                raise DataError(f"{self.jsonl}: there is nothing to upload.{first}")
            self._check(sent_sizes)
            partial.replace(output)
            self.store.write(output.name, output)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{output} or a file next to it cannot be written: {error}.") from error
        finally:
            with suppress(OSError):
                partial.unlink()
        return report

    def _send_references(self, row: FlowRow, report: UploadReport) -> list[_Sent] | Unusable:
        """The reference images of `row` in the store; the reason if one cannot be sent."""
        sent: list[_Sent] = []
        for name in references_of(row.fields):
            if name not in self._references:
                self._references[name] = one = self._send(FlowRow(row.where, row.fields | {"filename": name}))
                if isinstance(one, _Sent):
                    report.num_sent += one.is_new
                    report.num_unchanged += not one.is_new
                    report.num_bytes += one.size * one.is_new
            one = self._references[name]
            if isinstance(one, Unusable):
                return Unusable(row.where, f"reference {one.reason}")
            sent.append(one)
        return sent

    def _send_all(
        self, state: BuildState, report: UploadReport, on_progress: Callable[[UploadReport], None]
    ) -> Iterator[tuple[FlowRow, _Sent | None]]:
        """Each usable row, in order, with its image in the store; None for rows that are URLs already."""
        pending: deque[tuple[FlowRow, Future[_Sent | Unusable] | None]] = deque()
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
                            self._load_digest(row.filename, state)
                            sending[row.filename] = pool.submit(self._send, row)
                        future = sending[row.filename]
                    pending.append((row, future))
                    if len(pending) > AHEAD:
                        yield from self._finish(*pending.popleft(), state, report)
                        on_progress(report)
                while pending:
                    yield from self._finish(*pending.popleft(), state, report)
                    on_progress(report)
            finally:
                pool.shutdown(cancel_futures=True)

    def _load_digest(self, filename: str, state: BuildState) -> None:
        """Load the digest from an earlier upload; here, because the state is not thread-safe."""
        key = self._key(filename)
        if entry := state.get_all([key]).get(key):
            self._digests[filename] = entry

    def _key(self, filename: str) -> str:
        return f"{self.url} {filename}"

    def _finish(
        self, row: FlowRow, future: Future[_Sent | Unusable] | None, state: BuildState, report: UploadReport
    ) -> Iterator[tuple[FlowRow, _Sent | None]]:
        if future is None:
            yield row, None
            return
        sent = future.result()
        if isinstance(sent, Unusable):
            report.unusable.append(Unusable(row.where, sent.reason))
            return
        if sent.row is row:
            report.num_sent += sent.is_new
            report.num_unchanged += not sent.is_new
            report.num_bytes += sent.size * sent.is_new
            state.put([(self._key(row.filename), sent.stamp, sent.digest)])
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
            return Unusable(row.where, f"{row.filename}: {error}")
        except OSError as error:
            return Unusable(row.where, f"{row.filename}: {reason_of(error)}")
        name = path.relative_to(self.folder).as_posix()
        is_new = not self._is_same(self._listed.get(name), size, digest, known_stamp == stamp)
        if is_new:
            self.store.write(name, path)
        return _Sent(row, name, size, digest, is_new, stamp)

    def _is_same(self, entry: ListedObject | None, size: int, digest: str, was_sent: bool) -> bool:
        """True if the object equals the file: by checksum, or by `was_sent` if the store has none."""
        if entry is None or entry.size != size:
            return False
        etag = (entry.etag or "").strip('"')
        return etag == digest if _MD5.fullmatch(etag) else was_sent

    def _check(self, sent: dict[str, tuple[int, str]]) -> None:
        names = {entry.name: entry for entry in self.store.list("")}
        missing = [
            name
            for name, (size, digest) in sent.items()
            if not self._is_same(names.get(name), size, digest, was_sent=True)
        ]
        if missing:
            listed = "".join(f"\n  {name}" for name in missing[:20])
            raise DataError(
                f"{self.url}: {len(missing)} of {len(sent)} images are missing or differ. Run it again; "
                f"if that does not help, the store changes uploaded files.{listed}"
            )
