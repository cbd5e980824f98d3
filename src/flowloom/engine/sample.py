"""`flowloom sample`: images and clips from a run, a checkpoint or a weights file, with LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from flowloom.config.remote_models import with_local_models
from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine import checkpoint
from flowloom.engine.build import load_encoders, load_network
from flowloom.engine.clips import save_generated
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.memory import HEADROOM, free_bytes
from flowloom.engine.preview import SampleGenerator, SamplingParams, generate_in_batches, record_of
from flowloom.engine.state import choose_precision
from flowloom.errors import ConfigError, RunError, WeightsError
from flowloom.files import write_json
from flowloom.model_library.requirements import unfit_adapter, unfit_models
from flowloom.models.adapters.adapter import Adapter
from flowloom.models.adapters.read import is_adapter, load_onto
from flowloom.models.device import choose_device
from flowloom.models.family import family_for
from flowloom.run.directory import RunDir

MAX_BATCH = 4
BYTES_PER_WEIGHT = 2
"""Of networks on CUDA, which have bfloat16 weights."""


@dataclass(frozen=True)
class SampleRequest:
    """Arguments of `sample`."""

    source: Path
    """A run directory, a checkpoint, or a file with weights or an adapter."""
    prompts: Sequence[str]
    out_dir: Path
    params: SamplingParams
    config: RunConfig | None = None
    """Names the encoders, and the base of an adapter; needed when `source` is not in a run directory."""
    loras: Sequence[tuple[Path, float]] = ()
    """Adapter files with their strengths."""
    seed: int = 0
    weights: Literal["ema", "raw"] = "ema"


def sample(request: SampleRequest, warn: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Generate an image or clip for each prompt in `out_dir`, with `samples.json`; return their paths.

    Args:
        warn: called with notes on adapter files.

    Raises:
        RunError: `source` has no checkpoint, or no configuration names the encoders.
    """
    sample_generator, adapters = load_with_adapters(request)
    for adapter, _ in adapters:
        for note in adapter.metadata["notes"]:
            warn(note)
    seeds = [request.seed + i for i in range(len(request.prompts))]
    request.out_dir.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    records: list[dict[str, Any]] = []
    for i, image in enumerate(
        generate_in_batches(sample_generator, request.prompts, seeds, request.params, MAX_BATCH)
    ):
        files = save_generated(image, request.out_dir, f"{i:02d}", "png", "mp4")
        paths.append(request.out_dir / files["file"])
        record = {"prompt": request.prompts[i], "seed": seeds[i], "source": str(request.source)}
        records.append(files | record | record_of(request.params))
    write_json(request.out_dir / "samples.json", records)
    return paths


def load_generator(request: SampleRequest) -> SampleGenerator:
    """The network of `request.source`, with its LoRAs and encoders."""
    return load_with_adapters(request)[0]


def load_with_adapters(request: SampleRequest) -> tuple[SampleGenerator, list[tuple[Adapter, float]]]:
    """`load_generator`, and every adapter with its strength, the source's first."""
    config, base, adapters = _resolve(request)
    family = family_for(config.model)
    for path, _ in request.loras:
        unfit = unfit_adapter(path, family) if path.is_file() else None
        if unfit:
            raise WeightsError(unfit)
    section = config.model.model_copy(update={config.model.network_key: str(base)})
    problems = unfit_models(section.model_dump())
    if problems:
        raise ConfigError(str(request.source), problems)
    device = choose_device(config.parallel.device)
    precision = choose_precision(config, device)

    def attach(model: nn.Module) -> list[tuple[Adapter, float]]:
        return [(load_onto(model, path, at), at) for path, at in (*adapters, *request.loras)]

    load = partial(family.load_network, base, dtype=precision.compute)
    model, loaded, streamer = load_network(load, attach, device, streamed_for_sampling(config, device))
    if streamer:
        streamer.streams_trained = config.method_kind not in ADAPTERS
        streamer.adopt()
    encoders = load_encoders(config.model, config, device)
    return SampleGenerator(model, encoders, precision, config.model.use_x0), loaded


def streamed_for_sampling(config: RunConfig, device: torch.device) -> Literal["all"] | int:
    """`memory.streamed_blocks`; with auto all blocks if the networks do not fit on `device`."""
    count = config.memory.streamed_blocks
    if count != "auto":
        return count
    if device.type != "cuda":
        return 0
    networks = Networks.from_config(config)
    sizes = networks.total + networks.autoencoder + networks.text_encoder
    return "all" if sizes * BYTES_PER_WEIGHT > HEADROOM * free_bytes(device) else 0


def _resolve(request: SampleRequest) -> tuple[RunConfig, Path, list[tuple[Path, float]]]:
    """Configuration, base weights and the source's adapter."""
    path = checkpoint.find_weights(request.source, request.weights)
    run_dir = RunDir.around(path)
    config = request.config or (run_dir.read_config() if run_dir else None)
    if config is None:
        raise RunError(
            f"{path}: a weights file does not name the encoders. Add a configuration that does: "
            "--config CONFIG.json."
        )
    config = with_local_models(config)
    return (config, config.model.network_path, [(path, 1.0)]) if is_adapter(path) else (config, path, [])
