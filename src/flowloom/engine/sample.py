"""`flowloom sample`: pictures from a run, a checkpoint or weights file, with LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flowloom.engine import checkpoint
from flowloom.engine.build import choose_device, choose_precision, load_encoders
from flowloom.engine.preview import Drawing, Painter, draw_in_batches
from flowloom.errors import RunError
from flowloom.parts.adapters.formats import load_onto
from flowloom.parts.families.chroma import load_chroma
from flowloom.spec.run import RunConfig
from flowloom.spec.rundir import RunDir, write_json

MAX_BATCH = 4


@dataclass(frozen=True)
class SampleRequest:
    """What to draw, with what, and where to put it."""

    source: Path
    """A run directory, one of its checkpoints, or a weights file."""
    prompts: Sequence[str]
    out_dir: Path
    drawing: Drawing
    config: RunConfig | None = None
    """Where the VAE and T5 are; needed when `source` is a weights file outside a run."""
    loras: Sequence[tuple[Path, float]] = ()
    """Adapter files with their strengths."""
    seed: int = 0
    weights: Literal["ema", "raw"] = "ema"


def sample(request: SampleRequest) -> list[Path]:
    """Draw one picture a prompt into `out_dir`, with `samples.json` beside them; the pictures' paths.

    Raises:
        RunError: `source` has no checkpoint, or nothing says where the VAE and T5 are.
    """
    painter = load_painter(request)
    seeds = [request.seed + i for i in range(len(request.prompts))]
    request.out_dir.mkdir(parents=True, exist_ok=True)
    paths, records = [], []
    for i, picture in enumerate(draw_in_batches(painter, request.prompts, seeds, request.drawing, MAX_BATCH)):
        path = request.out_dir / f"{i:02d}.png"
        picture.save(path)
        paths.append(path)
        record = {"file": path.name, "prompt": request.prompts[i], "seed": seeds[i]}
        records.append(record | {"source": str(request.source)} | asdict(request.drawing))
    write_json(request.out_dir / "samples.json", records)
    return paths


def load_painter(request: SampleRequest) -> Painter:
    """The network that `request.source` means, with its LoRAs and encoders."""
    config, base, adapters = _resolve(request)
    device = choose_device(config.parallel.device)
    precision = choose_precision(config, device)
    model = load_chroma(base, device, precision.compute)
    for path, strength in (*adapters, *request.loras):
        load_onto(model, path, strength)
    encoders = load_encoders(config.model, config, device)
    return Painter(model, encoders, precision, config.model.use_x0)


def _resolve(request: SampleRequest) -> tuple[RunConfig, Path, list[tuple[Path, float]]]:
    """Configuration, base weights and the source's own adapter."""
    folder = _checkpoint_folder(request.source)
    if folder is None:
        if request.config is None:
            raise RunError(
                f"{request.source}: a weights file does not say where the VAE and T5 are. "
                "Name a configuration that does: --config CONFIG.json."
            )
        return request.config, request.source, []
    config = request.config or RunDir(folder.parent.parent).read_config()
    wanted = (checkpoint.EMA_MODEL, checkpoint.MODEL) if request.weights == "ema" else (checkpoint.MODEL,)
    base = next((folder / name for name in wanted if (folder / name).exists()), None)
    if base:
        return config, base, []
    wanted = (
        (checkpoint.EMA_ADAPTER, checkpoint.ADAPTER) if request.weights == "ema" else (checkpoint.ADAPTER,)
    )
    adapter = next((folder / name for name in wanted if (folder / name).exists()), None)
    if adapter is None:
        raise RunError(f"{folder}: neither {checkpoint.MODEL} nor {checkpoint.ADAPTER} is here.")
    return config, Path(config.model.chroma_path), [(adapter, 1.0)]


def _checkpoint_folder(source: Path) -> Path | None:
    """The checkpoint that `source` means: itself, a run's newest, or None for a file."""
    if source.is_file():
        return None
    if source.name.startswith("step_"):
        return source
    latest = RunDir.open(source).latest_checkpoint()
    if latest is None:
        raise RunError(f"{source}: this run has no checkpoint yet.")
    return latest
