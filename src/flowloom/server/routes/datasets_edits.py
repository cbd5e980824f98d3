"""Edits of many captions: previewed, made and undone."""

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
    filter: ImageFilter = Field(
        ImageFilter.model_validate({}), description="As for GET .../images; {}: all images."
    )
    items: list[Annotated[str, Field(max_length=4096)]] | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="Only these; null: all.",
        examples=[["a.png"]],
    )


class EditPreviewRequest(ImageSelection):
    """An edit to preview."""

    examples: int = Field(10, ge=0, le=SHOWN, description="Number of captions to show.")


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

    num_matching: int = Field(description="Captions that the filter matches.")
    num_changed: int = Field(description="Captions that would change.")
    num_unreadable: int = Field(description="Captions that cannot be read and stay unchanged.")
    examples: list[EditExample]
    version: str


class EditView(BaseModel):
    """An edit that was made."""

    id: str = Field(examples=["20260102-030405-0a1b2c3d"])
    time: float = Field(description="Seconds since 1970.")
    title: str = Field(examples=["Added “snow” at the end"])
    num_changed: int
    undoes: str | None = Field(description="The edit that this one undid.")
    changed_meanwhile: list[str] = Field(
        [], description="Items left unchanged because another program changed them."
    )
    is_whole: bool = Field(
        True, description="False: it was cancelled while writing; undo it to restore all captions."
    )

    @classmethod
    def of(cls, edit: Edit) -> EditView:
        """The view of an edit."""
        return cls.model_validate(edit, from_attributes=True)


class StageView(BaseModel):
    """Progress of the edit that is being made."""

    title: str
    phase: Phase = Field(
        description="scanning: the folder is scanned; reading: captions are read and kept for an undo; "
        "writing: captions are written."
    )
    num_done: int = Field(description="Captions done in this phase.", examples=[42_000])
    num_total: int = Field(description="Captions in this phase; 0: not known yet.", examples=[100_000])


class EditProgressView(BaseModel):
    """The edit that is being made."""

    edit: StageView | None = Field(description="Null: no edit is being made.")

    @classmethod
    def of(cls, stage: Stage | None) -> EditProgressView:
        """The view of an edit."""
        return cls(edit=stage and StageView.model_validate(stage, from_attributes=True))


def _editor(library: LibraryDep, dataset: DatasetDep) -> Editor:
    return library.editor(dataset)


EditorDep = Annotated[Editor, Depends(_editor)]
EditId = Annotated[
    str, Path(description="As listed by GET .../edits.", examples=["20260102-030405-0a1b2c3d"])
]


@router.post("/datasets/{dataset}/edits/preview", summary="Preview an edit")
@in_group("waiting")
def preview_edit(editor: EditorDep, body: EditPreviewRequest) -> EditPreview:
    """The number of captions it would change, and some of them before and after. Nothing is changed."""
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
    """The old captions are saved first, so that the edit can be undone. The response comes when all are
    written.

    A lost connection does not end the edit; `GET .../edits/progress` shows its progress."""
    selected = body.filter.filter(body.items)
    return EditView.of(editor.make(body.operation, selected, body.version, body.operation.title()))


@router.get("/datasets/{dataset}/edits", summary="List edits")
def list_edits(editor: EditorDep) -> list[EditView]:
    """Edits that can be undone, newest first."""
    return [EditView.of(edit) for edit in editor.edits()]


@router.get("/datasets/{dataset}/edits/progress", summary="Progress of an edit")
def read_progress(editor: EditorDep) -> EditProgressView:
    """Of the current edit or undo."""
    return EditProgressView.of(editor.lock.stage)


@router.post("/datasets/{dataset}/edits/cancel", summary="Cancel the edit that is being made")
def cancel_edit(editor: EditorDep) -> EditProgressView:
    """Before it writes, nothing is changed, and the request that made it returns 409. While it writes, it
    ends early: it is listed with the captions that it changed, and can be undone. Without an edit, nothing
    happens."""
    return EditProgressView.of(editor.lock.cancel())


@router.post(
    "/datasets/{dataset}/edits/{edit_id}/undo",
    summary="Undo an edit",
    responses=problems(NoSuchDataset, WrongKind, NoSuchEdit, ChangedMeanwhile, EditUnderWay, EditCancelled),
)
@in_group("waiting")
def undo_edit(editor: EditorDep, edit_id: EditId, body: UndoRequest) -> EditView:
    """Restore the captions; refused with a list of captions that have changed since. The undo is an edit
    itself, which can be undone."""
    return EditView.of(editor.undo(edit_id, is_partial=body.is_partial))
