"""Pictures over a grid of settings as a run of the studio (tasks/sample.py)."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from flowloom.engine.preview import Drawing
from flowloom.engine.sample import SampleRequest, load_with_adapters
from flowloom.run.directory import write_json
from flowloom.tasks.base import Progress
from flowloom.tasks.sample import SampleConfig, Shot, run_config, shots


def sample_in_a_run(config: SampleConfig, progress: Progress) -> None:
    """Work of the task `sample`: every picture is one of its samples, of step 0, as soon as it is drawn."""
    folder = progress.run_dir.samples_dir(0)
    folder.mkdir(parents=True, exist_ok=True)
    records = _drawn(folder)
    planned = list(shots(config))
    done = {record["file"] for record in records}
    left = [shot for shot in planned if shot.file not in done]
    if not left:
        return
    said: set[str] = set()
    progress.phase("sampling")
    progress.step(len(records), len(planned))
    for (source, weights), found in groupby(left, key=lambda shot: (shot.source, shot.weights)):
        painter, adapters = load_with_adapters(_request(config, folder, source, weights))
        for note in [note for adapter, _ in adapters for note in adapter.metadata["notes"]]:
            if note not in said:  # the same LoRA goes onto every source
                progress.warn(note)
                said.add(note)
        for shot in found:
            if progress.is_stopped():
                return
            for adapter, strength in adapters:
                adapter.set_strength(strength * shot.lora_strength)
            drawing = _drawing(config, shot)
            (picture,) = painter.draw([shot.prompt], [shot.seed], drawing)
            _save(picture, folder / shot.file)
            records.append(_told(config, shot) | asdict(drawing) | _with_loras(config, shot))
            write_json(folder / "samples.json", records)
            progress.say("sampled", step=0, dir=f"samples/{folder.name}")
            progress.step(len(records), len(planned))
        # Before the next source's networks are loaded.
        del painter, adapters
    progress.save_result({"pictures": len(records)})


def _request(
    config: SampleConfig, folder: Path, source: str, weights: Literal["ema", "raw"]
) -> SampleRequest:
    loaded = run_config(config)
    loras = [(Path(lora.lora_path), lora.strength) for lora in config.loras]
    return SampleRequest(
        source=Path(source or loaded.model.chroma_path),
        prompts=config.prompts,
        out_dir=folder,
        drawing=_drawing(config, next(shots(config))),
        config=loaded,
        loras=loras,
        weights=weights,
    )


def _told(config: SampleConfig, shot: Shot) -> dict[str, Any]:
    source = shot.source or run_config(config).model.chroma_path
    told = {"file": shot.file, "prompt": shot.prompt, "seed": shot.seed, "source": source}
    return told | ({"weights": shot.weights} if config.grid.weights else {})


def _drawn(folder: Path) -> list[dict[str, Any]]:
    """What an earlier sitting drew."""
    try:
        records = json.loads((folder / "samples.json").read_text())
    except FileNotFoundError:
        return []
    return [record for record in records if (folder / record["file"]).is_file()]


def _drawing(config: SampleConfig, shot: Shot) -> Drawing:
    return Drawing(
        config.width,
        config.height,
        steps=shot.steps,
        cfg=shot.cfg,
        guidance=config.guidance,
        first_n_steps_wo_cfg=config.first_n_steps_wo_cfg,
        sampler=shot.sampler,
        negative=config.negative,
    )


def _save(picture: Image.Image, path: Path) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    picture.save(partial, "png")
    partial.replace(path)


def _with_loras(config: SampleConfig, shot: Shot) -> dict[str, Any]:
    if not config.loras and not config.grid.lora_strengths:
        return {}
    loras = [
        {"path": lora.lora_path, "strength": lora.strength * shot.lora_strength} for lora in config.loras
    ]
    return {"loras": loras, "lora_strength": shot.lora_strength}
