"""Edits of many captions at once: shown before they are made, and undone."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, status
from pydantic import BaseModel, ConfigDict, Field

from flowloom.server.datasets.edit_lock import EditCancelled, EditUnderWay, Phase, Stage
from flowloom.server.datasets.edits import ChangedMeanwhile, Edit, EditChanged, Editor, NoSuchEdit
from flowloom.server.datasets.locations import NoSuchDataset, WrongKind
from flowloom.server.datasets.operations import Operation
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import problems
from flowloom.server.routes.datasets import DatasetDep, LibraryDep
from flowloom.server.routes.datasets_images import ImageFilter

router = Router(tags=["datasets"], responses=problems(NoSuchDataset, WrongKind))
SHOWN = 100


class ImageSelection(BaseModel):
    """An operation, and the images that it applies to."""

    model_config = ConfigDict(extra="forbid")

    operation: Operation = Field(examples=[{"kind": "add", "tags": ["snow"], "where": "end"}])
    filter: ImageFilter = Field(ImageFilter.model_validate({}), description="As for GET .../images; {}: all.")
    items: list[Annotated[str, Field(max_length=4096)]] | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="Only these of them; null: all.",
        examples=[["a.png"]],
    )


class EditPreviewRequest(ImageSelection):
    """An edit to preview."""

    examples: int = Field(10, ge=0, le=SHOWN, description="How many captions to show.")


class EditRequest(ImageSelection):
    """An edit to make."""

    version: str | None = Field(
        None,
        max_length=100,
        description="Version of the preview: refused if the edit would now change other captions.",
    )


class UndoRequest(BaseModel):
    """Options of an undo."""

    model_config = ConfigDict(extra="forbid")

    is_partial: bool = Field(
        False, description="Skip captions that were changed since the edit.", examples=[False]
    )


class EditExample(BaseModel):
    """One caption, before and after."""

    item: str
    before: str
    after: str


class EditPreview(BaseModel):
    """The changes that an edit would make."""

    num_matching: int = Field(description="Captions that were looked at.")
    num_changed: int = Field(description="Those that would be changed.")
    num_unreadable: int = Field(description="Those that cannot be read, and stay as they are.")
    examples: list[EditExample]
    version: str


class EditView(BaseModel):
    """An edit that was made."""

    id: str = Field(examples=["20260102-030405-0a1b2c3d"])
    time: float = Field(description="When, in seconds since 1970.")
    title: str = Field(examples=["Added “snow” at the end"])
    num_changed: int
    undoes: str | None = Field(description="The edit that this one undid.")
    changed_meanwhile: list[str] = Field(
        [], description="Items that were left as they are, since somebody changed them."
    )
    is_whole: bool = Field(
        True, description="False: it was cancelled while it wrote; undo it to have all captions as they were."
    )

    @classmethod
    def of(cls, edit: Edit) -> EditView:
        """As it is answered."""
        return cls.model_validate(edit, from_attributes=True)


class StageView(BaseModel):
    """Progress of the edit that is being made."""

    title: str
    phase: Phase = Field(
        description="scanning: the folder is scanned; reading: captions are read and kept for an undo; "
        "writing: captions are written."
    )
    num_done: int = Field(description="Captions that this phase is over with.", examples=[42_000])
    num_total: int = Field(description="Captions of this phase; 0: not known yet.", examples=[100_000])


class EditProgressView(BaseModel):
    """The edit that is being made."""

    edit: StageView | None = Field(description="null: nothing is.")

    @classmethod
    def of(cls, stage: Stage | None) -> EditProgressView:
        """As it is answered."""
        return cls(edit=stage and StageView.model_validate(stage, from_attributes=True))


def _editor(library: LibraryDep, dataset: DatasetDep) -> Editor:
    return library.editor(dataset)


EditorDep = Annotated[Editor, Depends(_editor)]
EditId = Annotated[str, Path(description="As GET .../edits lists it.", examples=["20260102-030405-0a1b2c3d"])]


@router.post("/datasets/{dataset}/edits/preview", summary="Preview an edit")
@in_group("waiting")
def preview_edit(editor: EditorDep, body: EditPreviewRequest) -> EditPreview:
    """How many captions it would change, and some of them before and after; nothing is changed."""
    plan = editor.plan(body.operation, body.filter.filter(body.items), body.examples)
    return EditPreview(
        num_matching=plan.num_matching,
        num_changed=plan.num_changed,
        num_unreadable=len(plan.unreadable),
        examples=[EditExample.model_validate(one, from_attributes=True) for one in plan.examples],
        version=plan.version,
    )


@router.post(
    "/datasets/{dataset}/edits",
    summary="Edit many captions",
    status_code=status.HTTP_201_CREATED,
    responses=problems(NoSuchDataset, WrongKind, EditChanged, EditUnderWay, EditCancelled),
)
@in_group("waiting")
def make_edit(editor: EditorDep, body: EditRequest) -> EditView:
    """Each caption as it was is kept first, so that the edit can be undone; the answer comes when all are
    written. A lost connection does not end it; `GET .../edits/progress` tells how far it is."""
    selected = body.filter.filter(body.items)
    return EditView.of(editor.make(body.operation, selected, body.version, body.operation.words()))


@router.get("/datasets/{dataset}/edits", summary="List edits")
def list_edits(editor: EditorDep) -> list[EditView]:
    """Those that can be undone, the latest first."""
    return [EditView.of(edit) for edit in editor.edits()]


@router.get("/datasets/{dataset}/edits/progress", summary="Progress of an edit")
def read_progress(editor: EditorDep) -> EditProgressView:
    """Of the edit or undo that is being made."""
    return EditProgressView.of(editor.lock.stage)


@router.post("/datasets/{dataset}/edits/cancel", summary="Cancel the edit that is being made")
def cancel_edit(editor: EditorDep) -> EditProgressView:
    """While it looks or reads, nothing is changed, and whoever made it is answered 409. While it writes, it
    ends where it is: it is listed with what it changed, and can be undone. Where none is made, none is ended.
    """
    return EditProgressView.of(editor.lock.cancel())


@router.post(
    "/datasets/{dataset}/edits/{edit_id}/undo",
    summary="Undo an edit",
    responses=problems(NoSuchDataset, WrongKind, NoSuchEdit, ChangedMeanwhile, EditUnderWay, EditCancelled),
)
@in_group("waiting")
def undo_edit(editor: EditorDep, edit_id: EditId, body: UndoRequest) -> EditView:
    """Puts the captions back as they were; refused, with what is in the way, where some were changed since.
    The answer is an edit itself, which can be undone again."""
    return EditView.of(editor.undo(edit_id, is_partial=body.is_partial))
