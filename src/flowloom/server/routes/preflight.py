"""What a run will take, told before it starts: by a process of its own, as the trainer names it."""

from __future__ import annotations

import json
import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowloom.run.preflight import PreflightReport
from flowloom.server.datasets.subprocess_task import Failed, TakesLong, last_words, run_process
from flowloom.server.deps import StudioDep, TrainerDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import Invalid, NoSuchTrainer, ServiceError, problems
from flowloom.server.runs.create import problems_of


class NoPreflight(ServiceError):
    status, code, title = 404, "no-preflight", "This trainer tells nothing beforehand."


router = Router(tags=["training"], responses=problems(NoSuchTrainer, NoPreflight, TakesLong, Failed))


class PreflightRequest(BaseModel):
    """A run, to be examined before it starts."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] = Field(examples=[{"dataloader": {"jsonl_metadata_path": "data/fox.jsonl"}}])
    gpu_gib: float | None = Field(None, gt=0, le=10_000, description="Of a CUDA card that is not here.")
    samples_per_s: float | None = Field(None, gt=0, le=10**6, description="A known rate.")


@router.post("/{trainer}/preflight", summary="Examine a run before it starts")
@in_group("waiting")
def preflight(trainer: TrainerDep, body: PreflightRequest, studio: StudioDep) -> PreflightReport:
    """Steps, buckets, rows left out, memory, disk, time; and what to change where it does not fit.

    `GET /api/trainers` says which trainers can be asked: FLOW and Kohya. Kohya's buckets, steps and epochs
    are those that sd-scripts makes; its memory is a coarse estimate, which names what it does not count.
    """
    if not trainer.preflight_command:
        hint = "POST its /config checks the configuration; its first steps show what it takes."
        raise NoPreflight(f"{trainer.title} cannot be asked what a run will take.", hint)
    if found := problems_of(studio, trainer, body.config):
        raise Invalid.of(found)
    path = studio.settings.state_dir / f"preflight-{secrets.token_hex(8)}.json"
    words = [*trainer.preflight_command, str(path), "--runs-dir", str(studio.settings.runs_dir)]
    words += ["--gpu-gib", str(body.gpu_gib)] if body.gpu_gib else []
    words += ["--samples-per-s", str(body.samples_per_s)] if body.samples_per_s else []
    try:
        path.write_text(json.dumps(body.config))
        done = run_process(words)
    finally:
        path.unlink(missing_ok=True)
    try:
        return PreflightReport.model_validate_json(done.stdout)
    except ValueError:
        told = last_words(done.stderr).replace(str(path), "config")
        raise Failed(told, "Mend it, and ask again.") from None
