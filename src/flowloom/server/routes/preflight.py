"""Preflight of a run, by a process of its trainer."""

from __future__ import annotations

import json
import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowloom.run.preflight import PreflightReport
from flowloom.server.datasets.subprocess_task import Failed, TakesLong, last_line, run_process
from flowloom.server.deps import StudioDep, TrainerDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import Invalid, NoSuchTrainer, ServiceError, problems
from flowloom.server.runs.create import problems_of


class NoPreflight(ServiceError):
    status, code, title = 404, "no-preflight", "This trainer has no preflight."


router = Router(tags=["training"], responses=problems(NoSuchTrainer, NoPreflight, TakesLong, Failed))


class PreflightRequest(BaseModel):
    """A run to check before it starts."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] = Field(examples=[{"dataloader": {"jsonl_metadata_path": "data/fox.jsonl"}}])
    gpu_gib: float | None = Field(
        None, gt=0, le=10_000, description="Memory of a CUDA device that is not in this machine."
    )
    samples_per_s: float | None = Field(None, gt=0, le=10**6, description="Known training rate.")
    table: bool = Field(False, description="FLOW: also list settings for cards of several sizes.")


@router.post("/{trainer}/preflight", summary="Check a run before it starts")
@in_group("waiting")
def preflight(trainer: TrainerDep, body: PreflightRequest, studio: StudioDep) -> PreflightReport:
    """Steps, buckets, rows left out, memory, disk and time, and changes with which the run fits.

    `GET /api/trainers` lists the trainers with a preflight: FLOW and Kohya. For Kohya, buckets, steps and
    epochs are computed like sd-scripts does, and memory is a coarse estimate that names what it leaves out.
    """
    if not trainer.preflight_command:
        hint = (
            "Check the configuration with POST /api/{trainer}/config; the first steps show memory and time."
        )
        raise NoPreflight(f"{trainer.title} has no preflight.", hint)
    if found := problems_of(studio, trainer, body.config):
        raise Invalid.of(found)
    path = studio.settings.state_dir / f"preflight-{secrets.token_hex(8)}.json"
    words = [*trainer.preflight_command, str(path), "--runs-dir", str(studio.settings.runs_dir)]
    words += ["--gpu-gib", str(body.gpu_gib)] if body.gpu_gib else []
    words += ["--samples-per-s", str(body.samples_per_s)] if body.samples_per_s else []
    words += ["--table"] if body.table and trainer.preflight_has_table else []
    try:
        path.write_text(json.dumps(body.config))
        done = run_process(words)
    finally:
        path.unlink(missing_ok=True)
    try:
        return PreflightReport.model_validate_json(done.stdout)
    except ValueError:
        reason = last_line(done.stderr).replace(str(path), "config")
        raise Failed(reason, "Fix the cause, then try again.") from None
