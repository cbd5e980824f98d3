"""Caption states of any number format train, validate and draw in any format of the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowloom.config.run import RunConfig
from flowloom.data.cache.setup import open_encoding_caches
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import Components, build
from flowloom.engine.collate import prepare
from flowloom.engine.encode import Encoders
from flowloom.engine.lazy import opened
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.preview import SamplingParams
from flowloom.engine.step import train_step
from flowloom.engine.validation import validation_loss
from flowloom.models.autoencoder import load_autoencoder
from flowloom.models.text_encoder import StatesOnly, load_t5
from flowloom.run.directory import RunDir

CPU = torch.device("cpu")
KEPT = [("off", "auto"), ("memory", "auto"), ("disk", "auto"), ("disk", "bf16"), ("disk", "fp32")]
"""Where states stay, and in what format; only the disk has a choice."""
PREVIEW = {"inference_every": 2, "steps": 2, "prompts": ["red"], "image_dim": [64, 64], "cfg": 2.0}
SECTIONS: dict[str, Any] = {
    "validation": {"share": 0.2, "max_rows": 2, "quantiles": [0.5]},
    "training": {"cfg_scale_strength": 2.0, "weight_decay": 0.0, "lr": 1e-9},
}


def with_encoders_of(components: Components, dtype: torch.dtype) -> Components:
    """`parts` with encoders that compute in `dtype`: in bfloat16, as on CUDA."""
    config, dataset = components.state.config, components.loader.dataset
    model = config.model
    t5 = StatesOnly(load_t5(model, CPU, dtype))
    caches = open_encoding_caches(config, dataset, dtype) if config.cache.is_on_disk else None
    vae = load_autoencoder(Path(model.vae_path), CPU, torch.float32)
    components.encoders = Encoders(opened(vae), opened(t5), config, CPU, caches)
    sample_generator = components.sample_generator
    components.sample_generator = type(sample_generator)(
        sample_generator.model, components.encoders, sample_generator.precision
    )
    return components


@pytest.fixture(scope="module")
def in_fp32(make_config: Callable[..., RunConfig]) -> tuple[float, float, Any]:
    """The measurements where everything is float32."""
    return measured(build(make_config(**SECTIONS), Ranks()))


@pytest.mark.parametrize("encodes_in", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize(("cache", "stored"), KEPT)
def test_every_format_of_cache_encoder_and_network_gives_the_same_loss_and_image(
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    in_fp32: tuple[float, float, Any],
    cache: str,
    stored: str,
    compute: str,
    encodes_in: torch.dtype,
) -> None:
    """Up to bfloat16's rounding; the second time with states from the cache."""
    own = {"text": cache, "dtype": stored, "dir": str(tmp_path / "cache")}
    config = make_config(**SECTIONS, cache=own, parallel={"dtype": compute, "device": "cpu"})
    components = with_encoders_of(build(config, Ranks()), encodes_in)
    for _ in range(2):
        loss, validated, image = measured(components)
        assert loss == pytest.approx(in_fp32[0], rel=0.02)
        assert validated == pytest.approx(in_fp32[1], rel=0.02)
        assert np.abs(image - in_fp32[2]).mean() < 2


def measured(components: Components) -> tuple[float, float, Any]:
    """The loss of an update, that of held-out rows, and an image generated with a negative prompt."""
    loaded = next(iter(components.loader.batches(0)))
    loss = train_step(
        components.state, prepare(components.state, loaded, components.encoders.encode(loaded))
    ).loss.item()
    assert components.validation is not None
    (validated,) = validation_loss(components.state, components.validation, components.encoders).values()
    params = SamplingParams(64, 64, steps=2, cfg=3.0, negative="blue bar", max_tokens=12)
    images = components.sample_generator.generate(["red, bar", "green bar, number 3"], [1, 2], params)
    return loss, validated, np.stack([np.asarray(image).astype(int) for image in images])


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 2, "base_model_quant_level": "8bit"}])
def test_a_run_from_a_bf16_cache_trains_in_fp32(
    make_run: Callable[..., RunDir], tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    losses = {}
    for stored in ("fp32", "bf16"):
        found: list[float] = []
        run_dir = make_run(
            stored,
            lora=lora,
            cache={"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache"), "dtype": stored},
            parallel={"dtype": "fp32", "device": "cpu"},
            inference={
                "inference_every": 2,
                "steps": 2,
                "prompts": ["red"],
                "image_dim": [64, 64],
                "cfg": 2.0,
            },
            validation={"share": 0.2, "every": 2},
            limits={"max_steps": 2},
        )
        run_engine(run_dir, lambda event: found.append(event["loss"]) if event["kind"] == "step" else None)  # noqa: B023
        losses[stored] = found
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
