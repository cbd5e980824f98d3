"""Masked loss: what the mask leaves out gives no gradient; a mask of ones changes no bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowloom.config.run import RunConfig
from flowloom.data.loader import SampleBatch
from flowloom.engine.build import Components, build
from flowloom.engine.collate import prepare
from flowloom.engine.objective import LatentBatch, sample_losses
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.step import train_step
from flowloom.nn.chroma import Chroma


class Predicts(Chroma):
    """A network whose prediction is its weight, so that each token's gradient can be seen."""

    def __init__(self, batch: LatentBatch):
        torch.nn.Module.__init__(self)
        self.prediction = torch.nn.Parameter(torch.randn_like(batch.latents))

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.prediction


def parts_and_batch(config: RunConfig) -> tuple[Components, SampleBatch]:
    components = build(config, Ranks())
    return components, next(iter(components.loader.batches(0)))


def with_masks(loaded: SampleBatch, mask: np.ndarray | None) -> SampleBatch:
    return replace(loaded, samples=[replace(sample, mask=mask) for sample in loaded.samples])


def same_text(batch: LatentBatch) -> LatentBatch:
    """All in one pass of the network."""
    return replace(batch, texts=[batch.texts[0]] * len(batch))


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_masked_areas_give_no_gradient(make_config: Callable[..., RunConfig], loss: str) -> None:
    components, loaded = parts_and_batch(make_config(objective={"loss": loss}))
    width, height = loaded.size
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = 255
    state = components.state
    masked = with_masks(loaded, mask)
    batch = same_text(prepare(state, masked, components.encoders.encode(masked)))
    network = Predicts(batch)
    sample_losses(network, batch, state.objective).sum().backward()
    gradient = network.prediction.grad
    assert gradient is not None
    half = batch.latents.shape[1] // 2
    assert (gradient[:, half:] == 0).all()
    assert (gradient[:, :half] != 0).any(dim=2).all()
    # As if there were nothing but the upper half.
    alone = replace(batch, latents=batch.latents[:, :half], noise=batch.noise[:, :half], token_weight=None)
    upper = Predicts(alone)
    upper.prediction.data = network.prediction.data[:, :half]
    torch.testing.assert_close(
        sample_losses(upper, alone, state.objective), sample_losses(network, batch, state.objective)
    )


def test_half_of_a_token_counts_half(make_config: Callable[..., RunConfig]) -> None:
    components, loaded = parts_and_batch(make_config())
    width, height = loaded.size
    mask = np.zeros((height, width), np.uint8)
    mask[:8, :] = 255
    mask[32, 0] = 255
    masked = with_masks(loaded, mask)
    weight = prepare(components.state, masked, components.encoders.encode(masked)).token_weight
    assert weight is not None
    tokens = weight[0].reshape(height // 16, width // 16)
    assert tokens[0].tolist() == [0.5] * (width // 16)
    assert tokens[2, 0].item() == pytest.approx(1 / 256)
    assert tokens[1].sum() + tokens[3].sum() == 0


@pytest.mark.parametrize("cfg", [None, 3.0])
def test_a_mask_of_ones_changes_no_bit(make_config: Callable[..., RunConfig], cfg: float | None) -> None:
    results = []
    for masked in (False, True):
        components, loaded = parts_and_batch(make_config(training={"cfg_scale_strength": cfg}))
        width, height = loaded.size
        ones = np.full((height, width), 255, np.uint8)
        part = with_masks(loaded, ones if masked else None)
        batch = prepare(components.state, part, components.encoders.encode(part))
        assert (batch.token_weight is not None) == masked
        metrics = train_step(components.state, batch)
        results.append((metrics, {name: weight.clone() for name, weight in components.state.trained.items()}))
    (plain, before), (masked_too, after) = results
    assert torch.equal(plain.loss, masked_too.loss)
    assert torch.equal(plain.losses, masked_too.losses)
    assert torch.equal(plain.grad_norm, masked_too.grad_norm)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_mask_that_leaves_nothing_is_no_update_of_nan(make_config: Callable[..., RunConfig]) -> None:
    components, loaded = parts_and_batch(make_config(training={"weight_decay": 0.0}))
    width, height = loaded.size
    masked = with_masks(loaded, np.zeros((height, width), np.uint8))
    batch = prepare(components.state, masked, components.encoders.encode(masked))
    assert train_step(components.state, batch).loss.item() == 0
    assert all(torch.isfinite(weight).all() for weight in components.state.trained.values())


def test_an_image_whose_mask_is_black_is_left_out_and_reported(
    make_run: Callable[..., Any], synthetic_data: Path, tmp_path: Path
) -> None:
    """It would count as a sample of loss 0, alone in its batch as a step of loss 0."""
    from flowloom.engine.__main__ import run_engine

    masks = tmp_path / "masks"
    masks.mkdir()
    for path in synthetic_data.glob("*.png"):
        with Image.open(path) as image:
            Image.new("L", image.size, 0 if path.stem == "05" else 255).save(masks / path.name)
    paths = {
        "jsonl_metadata_path": str(synthetic_data / "data.jsonl"),
        "image_folder_path": str(synthetic_data),
        "mask": "folder",
        "mask_folder_path": str(masks),
    }
    for weight, trained in ((0.0, 21), (0.1, 22)):
        events: list[dict[str, Any]] = []
        run_dir = make_run(
            f"weight-{weight}",
            dataloader={"batch_size": 1, "jsonl_metadata_path": ""},
            datasets=[paths | {"unmasked_weight": weight}],
            limits={"max_steps": None, "max_epochs": 1},
        )
        run_engine(run_dir, events.append)
        steps = [event for event in events if event["kind"] == "step"]
        assert len(steps) == trained
        assert all(event["loss"] > 0 for event in steps)
        skipped = [(event["line"], event["reason"]) for event in events if event["kind"] == "skipped"]
        assert [line for line, _ in skipped] == ([6] if trained == 21 else [])
        assert all("black" in reason for _, reason in skipped)


def test_a_masked_set_trains_beside_a_plain_one(
    make_run: Callable[..., Any], synthetic_data: Path, tmp_path: Path
) -> None:
    """End to end: several datasets, masks, repeats, a separate batch size, several captions."""
    from flowloom.engine.__main__ import run_engine

    masked = tmp_path / "masked"
    masked.mkdir()
    rows = []
    for i in range(6):
        pixels = np.full((64, 64, 4), 255, np.uint8)
        pixels[:, :32, 3] = 0
        Image.fromarray(pixels).save(masked / f"{i}.png")
        row = {"filename": f"{i}.png", "caption_or_tags": ["white", "a white square"]}
        rows.append(json.dumps(row | {"width": 64, "height": 64}) + "\n")
    (masked / "data.jsonl").write_text("".join(rows))
    own = {"jsonl_metadata_path": str(masked / "data.jsonl"), "image_folder_path": str(masked)}
    events: list[dict[str, Any]] = []
    run_dir = make_run(datasets=[own | {"mask": "alpha", "repeats": 2, "batch_size": 3}])
    run_engine(run_dir, events.append)
    steps = [event for event in events if event["kind"] == "step"]
    assert len(steps) == 6
    assert all(np.isfinite(event["loss"]) for event in steps)
    assert not [event for event in events if event["kind"] == "skipped"]
