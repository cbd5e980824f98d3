"""Images of a dataset in pages, their captions, and tags."""

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
    status, code, title = 428, "no-version", "The version of the caption is missing."


class ImageView(BaseModel):
    """An image of a dataset."""

    item: str = Field(description="Path in the folder, or line in the JSONL.", examples=["den/03.webp"])
    file: str = Field(description="File name as training uses it.")
    caption: str = Field(description="One line for each caption of a row.")
    version: str = Field(description="Version of the caption, for If-Match.")
    is_tags: bool
    width: int | None = Field(description="In pixels; null: not read yet.")
    height: int | None
    size: int | None = Field(description="In bytes; null: unknown.")
    changed: float | None
    problem: str = Field(description="Reason why training leaves it out; empty: none.")
    url: str = Field(description="URL of the image; with ?size=256 of its thumbnail.")


class ScanProgress(BaseModel):
    """Progress of the scan that updates the list."""

    is_running: bool
    phase: Literal["", "names", "sizes"] = Field(description="`sizes`: only width and height are missing.")
    num_done: int
    finished: float = Field(description="End of the last scan in seconds since 1970; 0: never.")
    error: str


class ImagePage(BaseModel):
    """A page of images."""

    total: int = Field(description="Number of images that the filter matches.")
    images: list[ImageView]
    scan: ScanProgress


class DatasetSummary(BaseModel):
    """Totals of a dataset."""

    images: int
    captioned: int
    problems: int
    bytes: int
    scan: ScanProgress


class TagCount(BaseModel):
    """A tag and the number of captions that have it."""

    tag: str = Field(examples=["snow"])
    count: int


class TagPage(BaseModel):
    """The most frequent tags."""

    captions: int = Field(description="Number of tag-based captions.")
    distinct: int = Field(description="Number of different tags.")
    tags: list[TagCount]


class CaptionView(BaseModel):
    """A caption."""

    item: str = Field(examples=["den/03.webp"])
    caption: str
    version: str = Field(description="Version for If-Match.", examples=["9f86d081884c7d659a2feaa0"])
    is_tags: bool
    problem: str


class NewCaption(BaseModel):
    """The new text of a caption."""

    model_config = ConfigDict(extra="forbid")

    caption: str = Field(max_length=100_000, pattern=r"^[^\x00]*$", examples=["a fox in the snow"])


class ImageFilter(BaseModel):
    """A filter of images; empty: all."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field("", max_length=500, description="Text in the caption or name.")
    tags: list[TAG] = Field([], max_length=50, description="Images with all of these tags.")
    without_tags: list[TAG] = Field([], max_length=50, description="Images with none of these tags.")
    has_caption: bool | None = None
    is_tags: bool | None = Field(None, description="True: tag-based captions; false: prose.")
    has_problem: bool | None = None
    folder: str = Field("", max_length=4096, description="Images in this folder.")
    min_side: int = Field(0, ge=0, le=10**6, description="Minimum of the shorter side in pixels.")
    max_side: int = Field(0, ge=0, le=10**6, description="Maximum of the longer side in pixels; 0: any.")

    def filter(self, items: list[str] | None = None) -> Filter:
        """The same filter for the index, optionally limited to `items`."""
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
Item = Annotated[str, InPath(description="As listed by GET .../images.", examples=["den/03.webp"])]


class TagQuery(ImageFilter):
    """The images whose tags are counted, and the tags to return."""

    contains: str = Field("", max_length=500, description="Only tags that contain this text.")
    limit: int = Field(200, ge=1, le=10_000)


class ImageQuery(ImageFilter):
    """A filter, an order and a page of images."""

    sort: Sort = "name"
    skip: int = Field(0, ge=0, le=10**9)
    limit: int = Field(100, ge=1, le=1000)


@router.get("/datasets/{dataset}/images", summary="List images")
@in_group("waiting")
def list_images(index: IndexDep, page: Annotated[ImageQuery, Query()], studio: StudioDep) -> ImagePage:
    """A page of them. The first scan of a large dataset continues in the background; `scan` has its
    progress."""
    state = index.refresh()
    total, rows = index.page(page.filter(), page.sort, page.skip, page.limit)
    base_url = studio.api(f"datasets/{quote(index.dataset.name, safe='')}/images")
    images = [_image_view(base_url, row) for row in rows]
    return ImagePage(
        total=total, images=images, scan=ScanProgress.model_validate(state, from_attributes=True)
    )


@router.get("/datasets/{dataset}/summary", summary="Totals of a dataset")
@in_group("waiting")
def read_summary(index: IndexDep) -> DatasetSummary:
    """Number of images, captions, problems and bytes."""
    state = index.refresh()
    return DatasetSummary(**index.totals(), scan=ScanProgress.model_validate(state, from_attributes=True))


@router.get("/datasets/{dataset}/tags", summary="Count tags")
@in_group("computing")
def count_tags(index: IndexDep, query: Annotated[TagQuery, Query()]) -> TagPage:
    """In the captions that the filter matches: with `tags=fox`, the tags that occur together with fox."""
    index.refresh()
    num_captions, counts = index.tags(query.filter())
    part = query.contains.casefold()
    found = ((tag, count) for tag, count in counts.items() if part in tag.casefold())
    first = sorted(found, key=lambda pair: (-pair[1], pair[0]))[: query.limit]
    tags = [TagCount(tag=tag, count=count) for tag, count in first]
    return TagPage(captions=num_captions, distinct=len(counts), tags=tags)


@router.get(
    "/datasets/{dataset}/images/{item:path}",
    summary="An image or its thumbnail",
    response_class=FileResponse,
    responses=problems(NoSuchDataset, NoSuchFile, OutsideRoots, NotAnImage, WrongKind) | UNCHANGED,
)
@in_group("images")
def read_image(
    index: IndexDep,
    item: Item,
    studio: StudioDep,
    size: Annotated[
        Size | None, Query(description="Longer side of a thumbnail in pixels; null: the original image.")
    ] = None,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The original file or, with `size`, a cached WebP thumbnail."""
    thumbnails = studio.settings.state_dir / "thumbnails"
    if size and index.dataset.kind == "bucket":
        path = thumbnail_from_store(_in_store(index, item), int(size), thumbnails)
    else:
        path = _image_path(index, item, studio)
        path = thumbnail(path, int(size), thumbnails) if size else path
    return image_response(path, if_none_match, "private, max-age=3600" if size else "private, no-cache")


@router.get(
    "/datasets/{dataset}/captions/{item:path}",
    summary="Read a caption",
    responses=problems(NoSuchDataset, NoSuchFile, OutsideRoots, WrongKind),
)
def read_caption(library: LibraryDep, dataset: DatasetDep, item: Item, response: Response) -> CaptionView:
    """Its current text, with its version as ETag."""
    return _caption_view(item, library.editor(dataset).read(item), response)


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
    if_match: Annotated[
        str | None, Header(description="The ETag that was read; * accepts any version.")
    ] = None,
) -> CaptionView:
    """Only if the version is the one that was read, so that two editors do not overwrite each other.

    An empty caption is removed."""
    if not if_match:
        hint = "Send If-Match with the ETag or version that came with the caption, or * for any version."
        raise NoVersion("If-Match is missing.", hint)
    versions = {part.strip().removeprefix("W/").strip('"') for part in if_match.split(",")}
    return _caption_view(item, library.editor(dataset).write(item, body.caption, versions), response)


def _caption_view(item: str, caption: Caption, response: Response) -> CaptionView:
    response.headers["etag"] = f'"{caption.version}"'
    return CaptionView(
        item=item,
        caption=caption.text,
        version=caption.version,
        is_tags=caption.is_tags,
        problem=caption.problem,
    )


def _image_view(base_url: str, row: Row) -> ImageView:
    special = ("url", "width", "height", "problem")
    return ImageView(
        **{name: getattr(row, name) for name in ImageView.model_fields if name not in special},
        width=row.width or None,
        height=row.height or None,
        problem=row.problem or row.damage,
        url=f"{base_url}/{quote(row.item)}",
    )


def _in_store(index: Index, item: str) -> InStore:
    row = index.get(item)
    if row is None:
        raise NoSuchFile(item)
    dataset = index.dataset
    return InStore(dataset.url, dataset.storage, row.item, row.stamp.partition("|")[0])


def _image_path(index: Index, item: str, studio: Studio) -> Path:
    """The file of an image.

    Raises:
        NoSuchFile: there is no such image or file.
        OutsideRoots: it is outside the studio's folders.
        WrongKind: it is in a bucket or at a URL.
    """
    row = index.get(item)
    if row is None:
        index.refresh(is_strict=True)
        row = index.get(item)
    folder = index.dataset.images_dir
    if row is None or not row.file:
        raise NoSuchFile(item)
    if folder is None or "://" in row.file:
        raise WrongKind(f"{row.file} is in a store.", "Request its thumbnail, or download it from the store.")
    try:
        path = find_image(folder, row.file) if index.dataset.kind == "jsonl" else inside(folder, row.file)
    except ImageError:
        raise NoSuchFile(row.file) from None
    if not studio.roots.contains(path):
        raise OutsideRoots(row.file)
    if not path.is_file():
        raise NoSuchFile(row.file)
    return path
