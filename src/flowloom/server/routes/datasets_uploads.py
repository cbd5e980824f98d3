"""Resumable uploads into a dataset by the tus protocol 1.0: images, captions and zips."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from email.utils import formatdate
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import Depends, Header, Path, Request, Response, status
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from flowloom.server.datasets.locations import Dataset, InvalidName, NoSuchDataset, WrongKind
from flowloom.server.datasets.reserved import NoRoom
from flowloom.server.datasets.unpack_report import UnpackView
from flowloom.server.datasets.uploads import (
    ALGORITHMS,
    MAX_BYTES,
    Busy,
    FileSkipped,
    FileTaken,
    NoSuchUpload,
    Part,
    Upload,
    Uploads,
    WrongChecksum,
    WrongOffset,
)
from flowloom.server.deps import StudioDep
from flowloom.server.off_loop import Router, off_loop
from flowloom.server.problems import OutsideRoots, ServiceError, problems
from flowloom.server.routes.datasets import DatasetDep

T = TypeVar("T")
VERSION = "1.0.0"
PART = "application/offset+octet-stream"
IDLE_S = 60.0
"""A request without data for this long ends; the data that arrived is kept."""
AT_ONCE = 2**20
_TUS_HEADERS = {
    "tus-version": VERSION,
    "tus-extension": "creation,creation-with-upload,termination,checksum,expiration",
    "tus-max-size": str(MAX_BYTES),
    "tus-checksum-algorithm": ",".join(ALGORITHMS),
}


class WrongTus(ServiceError):
    status, code, title = 412, "wrong-tus", "The request has another version of the tus protocol."


class WrongType(ServiceError):
    status, code, title = 415, "wrong-type", "The content type is not that of an upload."


router = Router(tags=["uploads"], responses=problems(NoSuchDataset, WrongKind, WrongTus))


class UploadView(BaseModel):
    """An upload."""

    id: str
    name: str
    offset: int = Field(description="Bytes received.")
    length: int = Field(description="Total size in bytes.")
    expires: float | None = Field(description="Time when it expires, in seconds since 1970.")
    unpacking: UnpackView | None = Field(
        description="Result or progress of unpacking a complete zip; else null."
    )


async def _uploads(studio: StudioDep) -> Uploads:
    return studio.uploads


async def _version(
    tus_resumable: Annotated[
        str, Header(description="Version of the tus protocol.", examples=[VERSION])
    ] = "",
) -> None:
    if tus_resumable != VERSION:
        raise WrongTus(f"Tus-Resumable is {tus_resumable!r}.", f"Send Tus-Resumable: {VERSION}.")


def _upload(
    dataset: DatasetDep,
    studio: StudioDep,
    upload_id: Annotated[
        str, Path(description="From the Location header.", examples=["0123456789abcdef0123456789abcdef"])
    ],
) -> Upload:
    return studio.uploads.get(dataset, upload_id)


UploadsDep = Annotated[Uploads, Depends(_uploads)]
UploadDep = Annotated[Upload, Depends(_upload)]
_TUS = [Depends(_version)]


@router.options(
    "/datasets/{dataset}/uploads", summary="Capabilities of uploads", status_code=status.HTTP_204_NO_CONTENT
)
def describe_uploads(dataset: DatasetDep) -> Response:  # noqa: ARG001 -- the dataset must exist
    """The response that the tus protocol defines."""
    return Response(status_code=204, headers=_TUS_HEADERS | {"tus-resumable": VERSION})


@router.get("/datasets/{dataset}/uploads", summary="List uploads")
def list_uploads(dataset: DatasetDep, uploads: UploadsDep) -> list[UploadView]:
    """Unfinished uploads, and zips that were unpacked recently."""
    return [_view(uploads, upload) for upload in uploads.all(dataset)]


@router.post(
    "/datasets/{dataset}/uploads",
    summary="Begin an upload",
    status_code=status.HTTP_201_CREATED,
    response_class=Response,
    dependencies=_TUS,
    responses=problems(
        NoSuchDataset, WrongKind, WrongTus, InvalidName, FileSkipped, FileTaken, OutsideRoots, NoRoom
    ),
)
async def create_upload(
    dataset: DatasetDep,
    uploads: UploadsDep,
    request: Request,
    upload_length: Annotated[int, Header(ge=0, le=2**53, description="In bytes.")],
    upload_metadata: Annotated[
        str,
        Header(
            max_length=8192,
            description="tus: filename or relativePath (with its folders), conflict (keep, the default, or "
            "replace), encoding of a zip's names; values in base64.",
            examples=["filename Zm94LnBuZw=="],
        ),
    ],
    upload_checksum: Annotated[str, Header(max_length=200)] = "",
) -> Response:
    """The Location header has the URL for PATCH. A body is the first part of the file.

    Files without use in a dataset (Thumbs.db, notes.docx, hidden ones) return 422 with the type
    `urn:flowloom:file-skipped`: skip them; nothing failed.
    """
    upload = await off_loop("uploading", uploads.create, dataset, upload_length, upload_metadata)
    url = f"/api/datasets/{quote(dataset.name, safe='')}/uploads/{upload.id}"
    if request.headers.get("content-type") == PART or not upload_length:
        await _receive(uploads, dataset, upload, _Incoming(request, 0, upload_checksum))
    headers = await off_loop("uploading", _headers, upload)
    return Response(status_code=201, headers=headers | {"location": url})


@router.head("/datasets/{dataset}/uploads/{upload_id}", summary="Offset of an upload",
             dependencies=_TUS, response_class=Response,
             responses=problems(NoSuchDataset, WrongKind, WrongTus, NoSuchUpload))  # fmt: skip
def read_upload_offset(upload: UploadDep) -> Response:
    """The response that the tus protocol defines: continue from Upload-Offset."""
    headers = {"upload-length": str(upload.length), "upload-metadata": upload.metadata}
    return Response(status_code=200, headers=_headers(upload) | headers)


@router.get(
    "/datasets/{dataset}/uploads/{upload_id}",
    summary="An upload",
    responses=problems(NoSuchDataset, WrongKind, NoSuchUpload),
)
def read_upload(upload: UploadDep, uploads: UploadsDep) -> UploadView:
    """Its progress; for a zip, also the result of unpacking."""
    return _view(uploads, upload)


@router.patch(
    "/datasets/{dataset}/uploads/{upload_id}",
    summary="Send a part",
    status_code=status.HTTP_204_NO_CONTENT,
    dependencies=_TUS,
    responses=problems(
        *(
            NoSuchDataset,
            WrongKind,
            WrongTus,
            NoSuchUpload,
            WrongOffset,
            FileTaken,
            Busy,
            WrongType,
            WrongChecksum,
        )
    ),
)
async def append(
    dataset: DatasetDep,
    uploads: UploadsDep,
    upload: UploadDep,
    request: Request,
    upload_offset: Annotated[int, Header(ge=0, le=2**53)],
    upload_checksum: Annotated[str, Header(max_length=200, examples=["sha256 ..."])] = "",
) -> Response:
    """From the offset on. Data that arrived before a broken connection is kept. After the last part the
    file is moved to its place, or a zip is unpacked."""
    if request.headers.get("content-type") != PART:
        raise WrongType(f"The content type is {request.headers.get('content-type')!r}.", f"Send {PART}.")
    await _receive(uploads, dataset, upload, _Incoming(request, upload_offset, upload_checksum))
    return Response(status_code=204, headers=await off_loop("uploading", _headers, upload))


@router.delete(
    "/datasets/{dataset}/uploads/{upload_id}",
    summary="End an upload",
    status_code=status.HTTP_204_NO_CONTENT,
    dependencies=_TUS,
    responses=problems(NoSuchDataset, WrongKind, WrongTus, NoSuchUpload),
)
def end_upload(dataset: DatasetDep, uploads: UploadsDep, upload: UploadDep) -> Response:
    """Remove the received data; for an unpacked zip, only the report."""
    uploads.end(dataset, upload)
    return Response(status_code=204, headers={"tus-resumable": VERSION})


class _Incoming:
    """The body of a request, as part of an upload."""

    def __init__(self, request: Request, offset: int, checksum: str):
        self.request, self.offset, self.checksum = request, offset, checksum


_deadlines: dict[str, asyncio.Timeout] = {}
"""Deadlines of the requests that are writing, by upload."""


async def _receive(uploads: Uploads, dataset: Dataset, upload: Upload, incoming: _Incoming) -> None:
    loop = asyncio.get_running_loop()
    if upload.id in _deadlines:
        # A new request after a broken connection takes precedence over the old one.
        _deadlines[upload.id].reschedule(loop.time())
        await asyncio.sleep(0.1)
    with ExitStack() as opened:
        opening = off_loop("uploading", _begin, opened, uploads, upload, incoming)
        part = await _to_its_end(opening)
        is_complete = False
        try:
            async with asyncio.timeout(IDLE_S) as deadline:
                _deadlines[upload.id] = deadline
                await write_through(part.write, incoming.request, deadline)
            is_complete = True
        except (ClientDisconnect, TimeoutError):
            pass  # the received data is kept, and the client asks for the offset
        finally:
            _deadlines.pop(upload.id, None)
            await _to_its_end(off_loop("uploading", partial(part.close, is_complete=is_complete)))
            await _to_its_end(off_loop("uploading", opened.close))
    if await off_loop("uploading", _is_complete, upload):
        await off_loop("uploading", uploads.finish, dataset, upload)


def _begin(opened: ExitStack, uploads: Uploads, upload: Upload, incoming: _Incoming) -> Part:
    part = opened.enter_context(uploads.writing(upload, incoming.offset))
    part.begin(incoming.checksum)
    return part


def _is_complete(upload: Upload) -> bool:
    return upload.offset == upload.length


async def write_through(write: Callable[[bytes], None], request: Request, deadline: asyncio.Timeout) -> None:
    """Write the request's body in pieces. On return, also after a cancellation, no thread is writing."""
    loop = asyncio.get_running_loop()
    waiting = bytearray()
    try:
        async for chunk in request.stream():
            deadline.reschedule(loop.time() + IDLE_S)
            waiting += chunk
            if len(waiting) >= AT_ONCE:
                content, waiting = bytes(waiting), bytearray()
                await _to_its_end(off_loop("uploading", write, content))
    finally:
        await _to_its_end(off_loop("uploading", write, bytes(waiting)))


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, awaited even after a cancellation, so that no file is closed while a thread
    uses it."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


def _headers(upload: Upload) -> dict[str, str]:
    headers = {"tus-resumable": VERSION, "upload-offset": str(upload.offset), "cache-control": "no-store"}
    if upload.data.exists() and upload.offset < upload.length:
        headers["upload-expires"] = formatdate(upload.expires, usegmt=True)
    return headers


def _view(uploads: Uploads, upload: Upload) -> UploadView:
    exists = upload.folder.exists()
    is_complete = upload.offset == upload.length
    return UploadView(
        id=upload.id,
        name=upload.name,
        offset=upload.offset,
        length=upload.length,
        expires=upload.expires if exists else None,
        unpacking=uploads.report(upload) if upload.is_zip and is_complete and exists else None,
    )
