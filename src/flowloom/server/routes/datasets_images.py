"""What is in a dataset: its pictures a page at a time, their captions, its tags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Depends, Header, Query, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from flowloom.datasets.captions.formats import Caption
from flowloom.errors import ImageError
from flowloom.server.allowed_roots import inside
from flowloom.server.datasets.edit_lock import EditUnderWay
from flowloom.server.datasets.edits import CaptionChanged
from flowloom.server.datasets.index import Index
from flowloom.server.datasets.locations import NoSuchDataset, WrongKind
from flowloom.server.datasets.scan import Row
from flowloom.server.datasets.table import Filter, Sort
from flowloom.server.deps import Studio, StudioDep
from flowloom.server.media.images import UNCHANGED, image_response
from flowloom.server.media.thumbnails import InStore, NotAnImage, thumbnail, thumbnail_from_store
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import NoSuchFile, OutsideRoots, ServiceError, problems
from flowloom.server.routes.datasets import DatasetDep, LibraryDep
from flowloom.server.routes.samples import Size
from flowloom.storage.local import find_image

router = Router(tags=["datasets"], responses=problems(NoSuchDataset))
TAG = Annotated[str, Field(max_length=500)]


class NoVersion(ServiceError):
    status, code, title = 428, "no-version", "Say which caption you have read."


class ImageView(BaseModel):
    """A picture of a dataset."""

    item: str = Field(
        description="Its path below the folder, or its line in the JSONL.", examples=["den/03.webp"]
    )
    file: str = Field(description="As training names it.")
    caption: str = Field(description="Several of a row, one a line.")
    version: str = Field(description="Of the caption: what If-Match wants.")
    is_tags: bool
    width: int | None = Field(description="Pixels; null: not read yet.")
    height: int | None
    size: int | None = Field(description="Bytes, where known.")
    changed: float | None
    problem: str = Field(description="Why it cannot be trained on as it is.")
    url: str = Field(description="The picture; with ?size=256 its thumbnail.")


class ScanProgress(BaseModel):
    """How far the list agrees with the files."""

    is_running: bool
    phase: Literal["", "names", "sizes"] = Field(description="`sizes`: all but width and height is known.")
    num_done: int
    finished: float = Field(description="When a scan last ended, in seconds since 1970; 0: never.")
    error: str


class ImagePage(BaseModel):
    """Some of the pictures."""

    total: int = Field(description="Of those that are asked for.")
    images: list[ImageView]
    scan: ScanProgress


class DatasetSummary(BaseModel):
    """What is in a dataset."""

    images: int
    captioned: int
    problems: int
    bytes: int
    scan: ScanProgress


class TagCount(BaseModel):
    """A tag, and how many captions have it."""

    tag: str = Field(examples=["snow"])
    count: int


class TagPage(BaseModel):
    """The most frequent tags."""

    captions: int = Field(description="Captions of tags that were counted.")
    distinct: int = Field(description="Tags in them.")
    tags: list[TagCount]


class CaptionView(BaseModel):
    """A caption."""

    item: str = Field(examples=["den/03.webp"])
    caption: str
    version: str = Field(description="What If-Match wants.", examples=["9f86d081884c7d659a2feaa0"])
    is_tags: bool
    problem: str


class NewCaption(BaseModel):
    """What a caption shall say."""

    model_config = ConfigDict(extra="forbid")

    caption: str = Field(max_length=100_000, pattern=r"^[^\x00]*$", examples=["a fox in the snow"])


class ImageFilter(BaseModel):
    """Which pictures are meant; all where nothing is said."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field("", max_length=500, description="In the caption or the name.")
    tags: list[TAG] = Field([], max_length=50, description="All of these.")
    without_tags: list[TAG] = Field([], max_length=50, description="None of these.")
    has_caption: bool | None = None
    is_tags: bool | None = Field(None, description="Whether the caption is tags, or prose.")
    has_problem: bool | None = None
    folder: str = Field("", max_length=4096, description="Below it.")
    min_side: int = Field(0, ge=0, le=10**6, description="Pixels of the shorter side.")
    max_side: int = Field(0, ge=0, le=10**6, description="Pixels of the longer side; 0: any.")

    def filter(self, items: list[str] | None = None) -> Filter:
        """For the index."""
        return Filter(
            text=self.text,
            tags=tuple(self.tags),
            without_tags=tuple(self.without_tags),
            has_caption=self.has_caption,
            is_tags=self.is_tags,
            has_problem=self.has_problem,
            folder=self.folder,
            min_side=self.min_side,
            max_side=self.max_side,
            items=tuple(items or ()),
        )


def _index(library: LibraryDep, dataset: DatasetDep) -> Index:
    return library.index(dataset)


IndexDep = Annotated[Index, Depends(_index)]
Item = Annotated[str, InPath(description="As GET .../images names it.", examples=["den/03.webp"])]


class TagQuery(ImageFilter):
    """Of which pictures tags are counted, and which tags are told."""

    contains: str = Field("", max_length=500, description="Only tags with this in them.")
    limit: int = Field(200, ge=1, le=10_000)


class ImageQuery(ImageFilter):
    """Which pictures, in which order."""

    sort: Sort = "name"
    skip: int = Field(0, ge=0, le=10**9)
    limit: int = Field(100, ge=1, le=1000)


@router.get("/datasets/{dataset}/images", summary="List pictures")
@in_group("waiting")
def list_images(index: IndexDep, page: Annotated[ImageQuery, Query()], studio: StudioDep) -> ImagePage:
    """A page of them; the first look at a large dataset goes on behind the scenes, as `scan` says."""
    state = index.refresh()
    total, rows = index.page(page.filter(), page.sort, page.skip, page.limit)
    place = studio.api(f"datasets/{quote(index.dataset.name, safe='')}/images")
    images = [_image(place, row) for row in rows]
    return ImagePage(
        total=total, images=images, scan=ScanProgress.model_validate(state, from_attributes=True)
    )


@router.get("/datasets/{dataset}/summary", summary="What is in a dataset")
@in_group("waiting")
def read_summary(index: IndexDep) -> DatasetSummary:
    """Pictures, captions, problems, bytes."""
    state = index.refresh()
    return DatasetSummary(**index.totals(), scan=ScanProgress.model_validate(state, from_attributes=True))


@router.get("/datasets/{dataset}/tags", summary="Count tags")
@in_group("computing")
def count_tags(index: IndexDep, asked: Annotated[TagQuery, Query()]) -> TagPage:
    """Of the pictures that are asked for: with `tags=fox`, what stands beside the tag fox."""
    index.refresh()
    num_captions, counts = index.tags(asked.filter())
    part = asked.contains.casefold()
    found = ((tag, count) for tag, count in counts.items() if part in tag.casefold())
    first = sorted(found, key=lambda pair: (-pair[1], pair[0]))[: asked.limit]
    tags = [TagCount(tag=tag, count=count) for tag, count in first]
    return TagPage(captions=num_captions, distinct=len(counts), tags=tags)


@router.get(
    "/datasets/{dataset}/images/{item:path}",
    summary="An image or its thumbnail",
    response_class=FileResponse,
    responses=problems(NoSuchDataset, NoSuchFile, OutsideRoots, NotAnImage, WrongKind) | UNCHANGED,
)
@in_group("images")
def read_picture(
    index: IndexDep,
    item: Item,
    studio: StudioDep,
    size: Annotated[
        Size | None, Query(description="Longer side in pixels; none: the picture itself.")
    ] = None,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The file as it lies there; with `size` a WebP of it that is made once."""
    thumbnails = studio.settings.state_dir / "thumbnails"
    if size and index.dataset.kind == "bucket":
        path = thumbnail_from_store(_in_store(index, item), int(size), thumbnails)
    else:
        path = _picture(index, item, studio)
        path = thumbnail(path, int(size), thumbnails) if size else path
    return image_response(path, if_none_match, "private, max-age=3600" if size else "private, no-cache")


@router.get(
    "/datasets/{dataset}/captions/{item:path}",
    summary="Read a caption",
    responses=problems(NoSuchDataset, NoSuchFile, OutsideRoots, WrongKind),
)
def read_caption(library: LibraryDep, dataset: DatasetDep, item: Item, response: Response) -> CaptionView:
    """As it is now, with its version as ETag."""
    return _told(item, library.editor(dataset).read(item), response)


@router.put(
    "/datasets/{dataset}/captions/{item:path}",
    summary="Write a caption",
    responses=problems(
        NoSuchDataset, NoSuchFile, OutsideRoots, WrongKind, CaptionChanged, EditUnderWay, NoVersion
    ),
)
def write_caption(
    library: LibraryDep,
    dataset: DatasetDep,
    item: Item,
    body: NewCaption,
    response: Response,
    if_match: Annotated[str | None, Header(description="The ETag that was read; * for any.")] = None,
) -> CaptionView:
    """Only over the version that was read: two editors do not undo each other. An empty one is taken away."""
    if not if_match:
        hint = (
            "Send If-Match with the ETag or version that came with the caption, or * to write over anything."
        )
        raise NoVersion("If-Match is missing.", hint)
    versions = {part.strip().removeprefix("W/").strip('"') for part in if_match.split(",")}
    return _told(item, library.editor(dataset).write(item, body.caption, versions), response)


def _told(item: str, caption: Caption, response: Response) -> CaptionView:
    response.headers["etag"] = f'"{caption.version}"'
    return CaptionView(
        item=item,
        caption=caption.text,
        version=caption.version,
        is_tags=caption.is_tags,
        problem=caption.problem,
    )


def _image(place: str, row: Row) -> ImageView:
    own = ("url", "width", "height", "problem")
    return ImageView(
        **{name: getattr(row, name) for name in ImageView.model_fields if name not in own},
        width=row.width or None,
        height=row.height or None,
        problem=row.problem or row.damage,
        url=f"{place}/{quote(row.item)}",
    )


def _in_store(index: Index, item: str) -> InStore:
    row = index.get(item)
    if row is None:
        raise NoSuchFile(item)
    dataset = index.dataset
    return InStore(dataset.url, dataset.storage, row.item, row.stamp.partition("|")[0])


def _picture(index: Index, item: str, studio: Studio) -> Path:
    """The file of a picture.

    Raises:
        NoSuchFile, OutsideRoots: as their names say.
        WrongKind: it lies in a bucket or at an address.
    """
    row = index.get(item)
    if row is None:
        index.refresh(is_strict=True)
        row = index.get(item)
    folder = index.dataset.images_dir
    if row is None or not row.file:
        raise NoSuchFile(item)
    if folder is None or "://" in row.file:
        raise WrongKind(f"{row.file} lies in a store.", "Ask for its thumbnail, or fetch it from there.")
    try:
        path = find_image(folder, row.file) if index.dataset.kind == "jsonl" else inside(folder, row.file)
    except ImageError:
        raise NoSuchFile(row.file) from None
    if not studio.roots.contains(path):
        raise OutsideRoots(row.file)
    if not path.is_file():
        raise NoSuchFile(row.file)
    return path
