"""A separate process for object stores, so that credentials and client libraries stay out of the studio.

`python -m flowloom.server.datasets.storage_process` reads one request as JSON and writes lines of JSON: for
`test` a line with the verdict, for `list` a line for each image.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import ssl
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, urlsplit

from flowloom.config.secrets import redact, usable_secrets
from flowloom.datasets.build.items import name_problem
from flowloom.datasets.build.pairs import PairRule, pair, split_suffix
from flowloom.datasets.build.readers.stored_rows import StoredRow, stored_rows
from flowloom.datasets.captions.formats import (
    NO_CAPTION,
    SUFFIXES,
    Caption,
    is_tags,
    parse_file,
    version_of,
)
from flowloom.errors import Denied, NotFound, SourceError, Unavailable
from flowloom.image_suffixes import IMAGE_SUFFIXES
from flowloom.server.datasets.scan import Row, folded
from flowloom.server.endpoints import endpoint_problem
from flowloom.storage.base import ObjectInfo, Source, StorageSection
from flowloom.storage.open import open_source
from flowloom.storage.ssrf import Allowed, connect

PATIENCE_S = 5.0
AT_ONCE, THREADS = 500, 16
_NO_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY by PUT /api/secrets, or set storage.anonymous."


class Broken(Exception):
    """A bucket cannot be read: a code for programs, the reason, and a hint."""

    def __init__(self, problem: str, detail: str, hint: str):
        super().__init__(detail)
        self.problem, self.hint = problem, hint


def test(url: str, storage: StorageSection) -> dict[str, Any]:
    """Test the store of `url`, from DNS to its first object."""
    if reason := endpoint_problem(storage.endpoint):
        return _verdict("denied", reason, "Or use a store with a public address.")
    try:
        if url.startswith("s3://"):
            _reach(url, storage)
        first = next(iter(_open(url, storage).list("")), None)
    except Broken as error:
        return _verdict(error.problem, str(error), error.hint)
    except SourceError as error:
        problem, hint = _code_and_hint(error)
        return _verdict(problem, str(error), hint)
    content = "lists its objects" if first else "has no objects at this URL"
    return _verdict("", f"The store responds and {content}.", "", first.name if first else None)


def _verdict(problem: str, detail: str, hint: str, first: str | None = None) -> dict[str, Any]:
    return {"ok": not problem, "problem": problem, "detail": detail, "hint": hint, "first": first}


def _open(url: str, storage: StorageSection) -> Source:
    if reason := endpoint_problem(storage.endpoint):
        raise Denied(reason)
    quick = {"tries": 1, "patience_minutes": 0.0, "timeout_s": PATIENCE_S}
    return open_source(url, storage.model_copy(update=quick))


def _reach(url: str, storage: StorageSection) -> None:
    """Connect to a bucket of S3 step by step.

    Raises:
        Broken: at the first step that fails.
    """
    region = storage.region or os.environ.get("AWS_REGION") or "us-east-1"
    given = storage.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    has_keys = storage.anonymous or storage.profile or os.environ.get("AWS_ACCESS_KEY_ID")
    if not has_keys and given:
        raise Broken("no-keys", "No keys are set.", _NO_KEYS)
    endpoint = urlsplit(given or f"https://s3.{region}.amazonaws.com")
    is_safe = endpoint.scheme == "https"
    host, port = endpoint.hostname or "", endpoint.port or (443 if is_safe else 80)
    allowed = Allowed.for_stores()
    allowed = allowed.and_given(given) if given else allowed
    where = f"{host}:{port}"
    try:
        connection = connect(host, port, allowed, PATIENCE_S)
    except Unavailable:
        raise Broken(
            "dns", f"The host {host} is unknown.", "Correct the endpoint, or check the network."
        ) from None
    except ConnectionRefusedError:
        hint = "Start the store, or correct the port of the endpoint."
        raise Broken("refused", f"{where} refuses connections.", hint) from None
    except TimeoutError:
        raise Broken("timeout", f"{where} does not respond.", "Check firewalls and the endpoint.") from None
    except OSError as error:
        raise Broken("unreachable", f"{where}: {error.strerror}.", "Check the network.") from None
    with connection:
        if is_safe:
            _shake_hands(connection, host)
    _compare_region(urlsplit(url).netloc, region, endpoint, allowed)


def _shake_hands(connection: socket.socket, host: str) -> None:
    try:
        with ssl.create_default_context().wrap_socket(connection, server_hostname=host):
            return
    except ssl.SSLCertVerificationError as error:
        reason = f"The certificate of {host} is not accepted: {error.verify_message}."
        raise Broken("tls", reason, "Renew it, or use the host name that it was issued for.") from None
    except OSError:
        hint = "Use http:// if the store has no TLS."
        raise Broken("tls", f"{host} does not support TLS on this port.", hint) from None


def _compare_region(bucket: str, region: str, endpoint: SplitResult, allowed: Allowed) -> None:
    """Raise Broken if the bucket is in another region, which stores report even without keys."""
    kind = http.client.HTTPSConnection if endpoint.scheme == "https" else http.client.HTTPConnection
    connection: Any = kind(endpoint.hostname or "", endpoint.port, timeout=PATIENCE_S)

    def connect_to(address: tuple[str, int], *_: object) -> socket.socket:
        return connect(*address, allowed, PATIENCE_S)

    connection._create_connection = connect_to
    try:
        connection.request("HEAD", f"/{bucket}")
        actual = connection.getresponse().getheader("x-amz-bucket-region")
    except (OSError, http.client.HTTPException, SourceError):
        return
    finally:
        connection.close()
    if actual and actual != region:
        raise Broken("region", f"The bucket is in region {actual}, not {region}.", f"Set region {actual}.")


def _code_and_hint(error: SourceError) -> tuple[str, str]:
    """A code for programs, and a hint."""
    message = str(error)
    if "AuthorizationHeaderMalformed" in message or "301" in message or "PermanentRedirect" in message:
        return "region", "Set the region of the bucket."
    if isinstance(error, NotFound) or "NoSuchBucket" in message:
        return "no-bucket", "Correct the name of the bucket, or create it."
    if isinstance(error, Denied):
        return "denied", "Check that the keys belong to this store and may list this bucket."
    if isinstance(error, Unavailable):
        return "unavailable", "Check the store, then try again."
    return "other", "See the message of the store."


def images(url: str, storage: StorageSection, known: dict[str, str]) -> Iterator[list[Any]]:
    """The row of every image below `url`; only its name if it is `known` and unchanged.

    Raises:
        SourceError: the store cannot be listed.
    """
    source = _open(url, storage)
    pairs = _pairs(source)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="captions") as pool:
        while batch := list(islice(pairs, AT_ONCE)):
            yield from pool.map(partial(_row, source, known=known), batch)


@dataclass(frozen=True)
class _Pair:
    item: str
    image: ObjectInfo
    sidecar: str
    text: ObjectInfo | None
    rows: list[StoredRow]
    """Rows of a JSONL in the bucket, if there is no caption file."""


def _pairs(source: Source) -> Iterator[_Pair]:
    suffixes = IMAGE_SUFFIXES.union(SUFFIXES)
    folders: dict[str, dict[str, ObjectInfo]] = defaultdict(dict)
    entries = list(source.list(""))
    images = {entry.name for entry in entries if split_suffix(entry.name)[1] in IMAGE_SUFFIXES}
    rows = stored_rows(source, entries, images)
    for entry in entries:
        path = PurePosixPath(entry.name)
        is_hidden = any(part.startswith(".") for part in path.parts)
        if split_suffix(path.name)[1] in suffixes and not is_hidden and not name_problem(entry.name):
            folders[entry.name[: -len(path.name)]][path.name] = entry
    for folder in sorted(folders):
        for found in pair(folders.pop(folder), folder, PairRule(SUFFIXES), lambda entry: not entry.size):
            if isinstance(found, tuple):
                name, image, text = found
                image_rows = [] if text else rows.get(folder + name, [])
                yield _Pair(folder + name, image, text.name if text else "", text, image_rows)


def _row(source: Source, found: _Pair, known: dict[str, str]) -> list[Any]:
    item, image, sidecar, text = found.item, found.image, found.sidecar, found.text
    caption_version = _version(text) if text else version_of(repr(found.rows).encode())
    stamp = f"{_version(image)}|{sidecar}|{caption_version}"
    if known.get(item) == stamp:
        return [item]
    caption, problem = NO_CAPTION, ""
    if text:
        try:
            caption = parse_file(PurePosixPath(sidecar).name, source.read(sidecar))
        except SourceError as error:
            problem = str(error)
    elif found.rows:
        caption = _of_rows(found.rows)
    width, height = found.rows[0].size if found.rows else (None, None)
    changed = image.modified.timestamp() if isinstance(image.modified, datetime) else None
    row = Row(
        item=item,
        position=0,
        file=item,
        stamp=stamp,
        size=image.size,
        changed=changed,
        width=width,
        height=height,
        caption=caption.text,
        folded=folded(caption.text),
        version=caption.version,
        is_tags=caption.is_tags,
        sidecar=sidecar,
        problem=problem or caption.problem,
    )
    return list(row)


def _of_rows(rows: list[StoredRow]) -> Caption:
    """The captions of an image in a JSONL, one per line."""
    text = "\n".join(dict.fromkeys(caption.strip() for row in rows for caption in row.captions))
    stated = rows[0].is_tag_based
    return Caption(text, version_of(text.encode()), is_tags(text) if stated is None else stated)


def _version(entry: ObjectInfo) -> str:
    return f"{entry.size}:{(entry.etag or '').strip(chr(34)) or entry.modified}"


def main() -> int:
    """Handle the request on standard input; 0, or 1 with the reason as the last line on standard error."""
    request = json.load(sys.stdin)
    url, storage = request["url"], StorageSection.model_validate(request["storage"])
    try:
        if request["verb"] == "test":
            text = json.dumps(test(url, storage))
            sys.stdout.write(redact(text, usable_secrets().values()) + "\n")
            return 0
        for row in images(url, storage, _known(Path(request["index"]))):
            sys.stdout.write(json.dumps(row) + "\n")
    except SourceError as error:
        sys.stderr.write(f"{redact(str(error), usable_secrets().values())}\n")
        return 1
    return 0


def _known(index: Path) -> dict[str, str]:
    with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True)) as base:
        return dict(base.execute("SELECT item, stamp FROM images"))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's shutdown, in which threads of the store that still work would fail.
    os._exit(status)
