"""Common base of the object stores of obstore: S3, Google and Azure."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Buffer

from flowloom.errors import Denied, NotFound, SourceError, Unavailable
from flowloom.storage.base import ObjectInfo, OnState, StorageSection, shown
from flowloom.storage.egress import Egress
from flowloom.storage.egress_proxy import REFUSED, UNREACHED
from flowloom.storage.remote import PAGE, Remote, Request, Response, event_loop

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

NO_RETRIES: RetryConfig = {"max_retries": 0}
"""CircuitBreaker retries, because it tracks the state of the store."""
PART_RETRIES: RetryConfig = {"max_retries": 6}
"""Within an upload in parts, so that a fault repeats one part and not the whole file."""
MOST_PARTS = 9_000
"""S3 allows 10,000 parts of an object."""
LONGEST_TRANSFER = timedelta(hours=1)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_FAULTS = (("timed out", ("TimedOut", "timed out")), ("no connection", ("Connect", "dns error")))
_BUCKET = re.compile(r"[A-Za-z0-9._$-]+")
_KEYS_AT_FAULT = {
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"),
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "InvalidClientTokenId"),
    *("AccountProblem", "NotSignedUp"),
    *("AuthenticationFailed", "InvalidAuthenticationInfo", "AccountIsDisabled", "AuthenticationRequired"),
}
"""Error codes of S3, Google (the same) and Azure about the keys or their account, not about one object."""
_BUSY = {"429", "503"}
_NO_ROOM = re.compile("quota|insufficientstorage|storagefull|diskfull", re.IGNORECASE)
"""In error codes of stores without room: QuotaExceeded of Ceph, XMinioStorageFull and others."""
PART_BYTES = 2**23
"""Size of a piece of an upload."""


def client_options(
    storage: StorageSection, endpoint: str | None = None, egress: Egress | None = None
) -> ClientConfig:
    """Timeouts and proxy of the HTTP client; plain HTTP only if the endpoint has it."""
    proxy: ClientConfig = {"proxy_url": egress.proxy_url} if egress else {}
    return proxy | {
        "allow_http": (endpoint or "").startswith("http://"),
        "connect_timeout": timedelta(seconds=connect_s(storage)),
        "read_timeout": timedelta(seconds=storage.timeout_s),
        "timeout": LONGEST_TRANSFER,
        "pool_max_idle_per_host": str(storage.connections),
    }


def connect_s(storage: StorageSection) -> float:
    """Timeout for making a connection."""
    return min(5.0, storage.timeout_s)


def bucket_and_prefix(url: str) -> tuple[str, str | None]:
    """The two parts of `s3://bucket/prefix`.

    Raises:
        SourceError: the URL has no bucket.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")  # not by urlsplit, because names of objects may contain ? and #
    # Some stores have the bucket in the host name, so it must not contain characters that change the host.
    if not _BUCKET.fullmatch(bucket):
        raise SourceError(f"{shown(url)}: write {scheme}://BUCKET or {scheme}://BUCKET/FOLDER.")
    return bucket, prefix.strip("/") or None


def open_objects(
    url: str,
    storage: StorageSection,
    on_state: OnState,
    make: Callable[..., ObjectStore],
    egress: Egress | None = None,
) -> Objects:
    """The store that `make` returns for the bucket and prefix of `url`; `egress` is the proxy of its client.

    Raises:
        SourceError: the URL has no bucket, or settings of this kind of store are missing.
    """
    from obstore.exceptions import BaseError

    bucket, prefix = bucket_and_prefix(url)
    connect = partial(make, bucket, prefix=prefix, retry_config=NO_RETRIES)
    try:
        return Objects(url, connect, storage, on_state, egress)
    except (BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0]  # such as "Account must be specified"
        raise SourceError(f"{shown(url)}: {reason}. Set it in the environment.") from None


class Objects(Remote):
    """Objects in one bucket, below one prefix."""

    def __init__(
        self,
        root: str,
        connect: Callable[..., ObjectStore],
        storage: StorageSection,
        on_state: OnState,
        egress: Egress | None = None,
    ):
        super().__init__(root, storage, on_state, is_trusted=True)
        self.store = connect()
        self.egress = egress
        self._connect = connect

    async def request(self, wanted: Request) -> Response:
        if wanted.start is not None and wanted.length is not None:
            return await self._request_range(wanted.name, wanted.start, wanted.start + wanted.length)
        options: Any = {"if_none_match": wanted.etag} if wanted.etag else None
        try:
            with self._translated(wanted.name):
                result = await self.store.get_async(wanted.name, options=options)
        except _Unchanged:
            return Response(0, wanted.etag, _no_body, _nothing, is_unchanged=True)
        meta = result.meta

        async def body() -> bytes:
            with self._translated(wanted.name):
                content = bytes(await result.bytes_async())
            if len(content) != meta["size"]:
                raise Unavailable(
                    f"{self.root}/{wanted.name}: the connection broke after {len(content)} bytes"
                )
            return content

        return Response(meta["size"], meta["e_tag"], body, _nothing)

    def read_versioned(self, name: str) -> tuple[bytes, str | None]:
        """The content of an object, and its etag for `write_if`."""

        async def attempt() -> tuple[bytes, str | None]:
            response = await self.request(Request(name))
            return await response.body(), response.etag

        return self._with_retries(attempt, name)

    def read_buffer(self, name: str, start: int, length: int) -> Buffer:
        return self._with_retries(lambda: self._range(name, start, start + length), name)

    async def _range(self, name: str, start: int, end: int) -> Buffer:
        with self._translated(name):
            return await self.store.get_range_async(name, start=start, end=end)

    async def _request_range(self, name: str, start: int, end: int) -> Response:
        content = bytes(await self._range(name, start, end))

        async def body() -> bytes:
            return content

        return Response(len(content), None, body, _nothing)

    async def _ping(self) -> None:
        try:
            await self._stat("ping")
        except Unavailable:
            raise
        except SourceError:
            return

    async def _ping_listing(self) -> None:
        await anext(self._pages("", None), None)

    def renew_keys(self) -> None:
        """Read the keys again, after a denial that the caller does not wait out."""
        self._renew_keys()

    def _renew_keys(self) -> None:
        from obstore.exceptions import BaseError

        # A client caches its keys until they expire.
        with suppress(BaseError, SourceError, OSError, ValueError):
            self.store = self._connect()

    async def _stat(self, name: str) -> ObjectInfo:
        try:
            with self._translated(name):
                return _object_info(await self.store.head_async(name))
        except _Unexplained:
            await self._range(name, 0, 1)
            raise

    async def _pages(self, prefix: str, after: str | None) -> AsyncIterator[list[ObjectInfo]]:
        with self._translated(prefix):
            stream = self.store.list_async(prefix or None, offset=after, chunk_size=PAGE)
        while True:
            with self._translated(prefix):
                metas = await anext(stream, None)
            if metas is None:
                return
            yield [_object_info(meta) for meta in metas]

    async def _put(self, name: str, content: bytes | Path) -> None:
        with self._translated(name):
            await self.store.put_async(name, content)

    async def _remove(self, name: str) -> None:
        with self._translated(name):
            await self.store.delete_async(name)

    def start_upload(self, name: str, pieces: AsyncIterator[bytes], size: int) -> Future[None]:
        """Begin to write an object of `size` bytes from `pieces`, with at most three of them in memory.

        The object appears when it is complete. An error of `pieces` aborts the upload and is raised by the
        result, as are the errors of `Source`; the caller begins again with the first piece.
        """
        return asyncio.run_coroutine_threadsafe(self._upload(name, pieces, size), event_loop())

    async def _upload(self, name: str, pieces: AsyncIterator[bytes], size: int) -> None:
        part = max(PART_BYTES, -(-size // MOST_PARTS))
        with self._translated(name):
            store = self._connect(retry_config=PART_RETRIES)
            await store.put_async(name, pieces, chunk_size=part, max_concurrency=2)

    def write_if(self, name: str, content: bytes, etag: str | None) -> str | None:
        """Write an object only if its present etag is `etag`; None: only if it does not exist.

        Returns the new etag, or None if another client wrote it in between.
        """
        return self._with_retries(lambda: self._put_if(name, content, etag), name)

    async def _put_if(self, name: str, content: bytes, etag: str | None) -> str | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._translated(name):
                try:
                    made = await self.store.put_async(
                        name, content, mode={"e_tag": etag} if etag else "create"
                    )
                except (AlreadyExistsError, PreconditionError):
                    return None
        except NotFound:
            if etag is None:
                raise
            return None  # the object with this etag is gone
        return made["e_tag"]

    @contextmanager
    def _translated(self, name: str) -> Generator[None]:
        """Raise SourceError instead of obstore's errors, which quote complete requests."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            where = f"{self.root}/{name}" if name else self.root
            raise self._refused(str(error), where) or translated(error, where) from None

    def _refused(self, text: str, where: str) -> SourceError | None:
        """The proxy's objection to a request; None if `text` does not mention it."""
        status = _first(_STATUS, text)
        if self.egress and (status == str(REFUSED) or "TunnelUnsuccessful" in text):
            return Denied(f"{where}: {self.egress.refusal()}")
        if self.egress and (status == str(UNREACHED) or "Connect" in text):
            self.egress.keep_open()
            return Unavailable(f"{where}: no connection")
        return None


class _Unexplained(SourceError):
    """The store returned 400 to HEAD, which has no body with a reason; expired keys are one."""


class _Unchanged(SourceError):
    """The content still has the given etag."""


def translated(error: Exception, where: str) -> SourceError:
    """The error for an error of obstore, without its text, which may contain signatures."""
    from obstore import exceptions

    text = str(error)
    status = _first(_STATUS, text)
    code = _first(_CODE, text)
    said = " ".join(part for part in (status, code) if part)
    if isinstance(error, exceptions.NotModifiedError):
        return _Unchanged(where)
    if isinstance(error, FileNotFoundError):
        bucket = "the bucket does not exist." if code == "NoSuchBucket" else "no such object."
        return NotFound(f"{where}: {bucket}")
    if _NO_ROOM.search(code) or status == "507":
        return Unavailable(f"{where}: the bucket is full ({said}). Delete objects in it, or raise its quota.")
    is_refused = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
    if is_refused or code in _KEYS_AT_FAULT or status in ("401", "403"):
        hint = "Check the keys in the environment or the profile, or set storage.anonymous."
        reason = said or "no valid keys"
        is_about_keys = code in _KEYS_AT_FAULT or status == "401" or not said
        return Denied(f"{where}: access denied ({reason}). {hint}", said=reason, is_about_keys=is_about_keys)
    if isinstance(error, ValueError):
        return SourceError(f"{where}: not a valid name of an object.")
    if status and status[0] in "34" and status not in ("408", "429"):
        kind = _Unexplained if said == "400" else SourceError
        return kind(f"{where}: the store returned {said}.")
    if status:
        return Unavailable(f"{where}: the store returned {said}", is_busy=status in _BUSY)
    fault = next((name for name, signs in _FAULTS if any(s in text for s in signs)), "the connection broke")
    return Unavailable(f"{where}: {fault}")


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""


def _object_info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])


async def _no_body() -> bytes:
    return b""


def _nothing() -> None:
    """Discard a body: obstore closes it with its response."""
