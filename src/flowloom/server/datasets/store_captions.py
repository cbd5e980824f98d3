"""Captions in a bucket for the studio: a process reads and writes them, so that keys stay out of the studio.

`python -m flowloom.server.datasets.store_captions` reads lines of JSON: first the URL and its storage, then
requests, each answered by a line.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from flowloom.config.secrets import redact, usable_secrets
from flowloom.datasets.captions.files import CaptionFiles
from flowloom.datasets.captions.store import CaptionError, Change
from flowloom.errors import FlowloomError
from flowloom.server.endpoints import endpoint_problem, environ_for_processes
from flowloom.storage.base import StorageSection


class StoreCaptions(CaptionFiles):
    """A `CaptionStore` of a bucket; its process starts at the first request and ends with `close`."""

    def __init__(self, url: str, storage: dict[str, Any]):
        super().__init__()
        self._first = {"url": url, "storage": storage}
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def require_access(self) -> None:
        """Check that captions can be written.

        Raises:
            CaptionError: they cannot.
        """
        self._ask({"verb": "require_access"})

    def read(self, place: str) -> bytes | None:
        """The content of the object.

        Raises:
            CaptionError: it cannot be read.
        """
        return _unpacked(self._ask({"verb": "read", "place": place}))

    def replace_all(self, batch: list[Change]) -> list[bool]:
        """Make the changes.

        Raises:
            CaptionError: an object cannot be written.
        """
        changes = [
            [change.item, change.place, _packed(change.before), _packed(change.after)] for change in batch
        ]
        return self._ask({"verb": "replace", "changes": changes})

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            process = self._process or self._start()
            assert process.stdin
            assert process.stdout
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (OSError, ValueError):
                raise CaptionError("The process that reads the bucket has ended.", "Try again.") from None
        if "error" in answer:
            raise CaptionError(answer["error"], answer["hint"])
        return answer["result"]

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flowloom.server.datasets.store_captions"],
            env=environ_for_processes(needs_secrets=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        self._process.stdin.write(json.dumps(self._first) + "\n")
        return self._process

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()


def _packed(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _unpacked(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def answers(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The answer to each request."""
    from flowloom.datasets.captions.bucket import BucketCaptions

    first = json.loads(next(lines))
    storage = StorageSection.model_validate(first["storage"]).model_copy(update={"patience_minutes": 0.0})
    store: BucketCaptions | None = None
    for line in lines:
        try:
            if reason := endpoint_problem(storage.endpoint):
                raise CaptionError(reason)
            store = store or BucketCaptions(first["url"], storage)
            yield {"result": _answer(store, json.loads(line))}
        except FlowloomError as error:
            hidden = usable_secrets().values()
            yield {"error": redact(str(error), hidden), "hint": redact(error.hint, hidden)}


def _answer(store: CaptionFiles, request: dict[str, Any]) -> Any:
    if request["verb"] == "read":
        return _packed(store.read(request["place"]))
    if request["verb"] == "replace":
        return store.replace_all(
            [
                Change(item, place, _unpacked(before), _unpacked(after))
                for item, place, before, after in request["changes"]
            ]
        )
    return store.require_access()


def main() -> None:
    """Answer until the input ends."""
    for answer in answers(iter(sys.stdin)):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
    # Without the interpreter's shutdown, in which threads of the store would fail.
    os._exit(0)
