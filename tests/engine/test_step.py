"""Guarantees of one update: how it is cut does not change it, weights count, nothing waits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from flowloom.config.run import RunConfig
from flowloom.engine.build import build
from flowloom.engine.collate import prepare, updates_of
from flowloom.engine.objective import LatentBatch, sample_losses
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.state import TrainState
from flowloom.engine.step import train_step
from flowloom.nn import varlen as ragged
from flowloom.nn.chroma import Chroma
from tests.engine.test_updates import LoneRank


def state_and_batch(config: RunConfig) -> tuple[TrainState, LatentBatch]:
    parts = build(config, Ranks())
    loaded = next(iter(parts.loader.batches(0)))
    return parts.state, prepare(parts.state, loaded, parts.encoders.encode(loaded))


def gradients_of(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one update; the optimizer is kept from spending them."""
    state, batch = state_and_batch(config)
    found: dict[str, torch.Tensor] = {}

    def keep() -> None:
        found.update({n: p.grad.clone() for n, p in state.trained.items() if p.grad is not None})

    monkeypatch.setattr(state.optimizer, "step", keep)
    return train_step(state, batch).loss.item(), found


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_one_micro_batch_of_eight_equals_eight_of_one(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """With unequal loss weights; FLOW's nine copies fail this."""
    results = []
    for size in (8, 1, 3):
        config = make_config(
            training={"train_minibatch": size},
            dataloader={"batch_size": 8},
            objective={"loss": loss, "huber_delta": 0.5},
        )
        results.append(gradients_of(config, monkeypatch))
    (loss_whole, whole), *others = results
    assert len(whole) > 20
    for loss_cut, cut in others:
        assert loss_cut == pytest.approx(loss_whole, rel=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_batches_of_two_sizes_make_one_update_that_is_the_mean_over_all(
    make_config: Callable[..., RunConfig],
) -> None:
    parts = build(make_config(), Ranks())
    sizes: dict[tuple[int, int], LatentBatch] = {}
    for loaded in parts.loader.batches(0):
        sizes[loaded.size] = prepare(parts.state, loaded, parts.encoders.encode(loaded))
    one, other = list(sizes.values())[:2]
    assert one.latents.shape[1] != other.latents.shape[1]
    with torch.no_grad():
        losses = [sample_losses(parts.state.model, batch, parts.state.objective) for batch in (one, other)]
    weights = torch.cat([one.loss_weight, other.loss_weight])
    expected = (torch.cat(losses) * weights).sum() / weights.sum()
    metrics = train_step(parts.state, one, other)
    assert parts.state.position.step == 1
    assert metrics.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(metrics.losses) == len(metrics.noise_level) == len(one) + len(other)


def test_metrics_have_the_rate_that_the_optimizer_used(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(training={"warmup_steps": 4})
    state, batch = state_and_batch(config)
    for share in (0.2875, 0.525, 0.7625, 1.0, 1.0):
        metrics = train_step(state, batch)
        (rate,) = {float(group["lr"]) for group in state.optimizer.param_groups}
        assert rate == pytest.approx(metrics.lr)
        assert rate == pytest.approx(1e-3 * share)


def test_a_weight_of_zero_takes_a_sample_out(make_config: Callable[..., RunConfig]) -> None:
    state, batch = state_and_batch(make_config())
    weights = torch.tensor([1.0, 0.0, 0.5, 0.0])
    batch = LatentBatch(**{**batch.__dict__, "loss_weight": weights})
    with torch.no_grad():
        losses = sample_losses(state.model, batch, state.objective)
    expected = (losses[0] + 0.5 * losses[2]) / 1.5
    assert train_step(state, batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_all_weights_zero_is_no_update_of_nan(make_config: Callable[..., RunConfig]) -> None:
    state, batch = state_and_batch(make_config(training={"weight_decay": 0.0}))
    batch = LatentBatch(**{**batch.__dict__, "loss_weight": torch.zeros(4)})
    train_step(state, batch)
    assert all(torch.isfinite(weight).all() for weight in state.trained.values())


def test_the_approximator_gets_no_gradient_and_stays(make_config: Callable[..., RunConfig]) -> None:
    state, batch = state_and_batch(make_config())
    frozen = {n: w.clone() for n, w in state.weights.items() if n.startswith("distilled_guidance_layer")}
    assert frozen
    train_step(state, batch)
    assert not frozen.keys() & state.trained.keys()
    assert all(torch.equal(state.weights[name], weight) for name, weight in frozen.items())


def test_clipping_bounds_the_update(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(optimizer={"kind": "adamw", "max_grad_norm": 1e-3})
    state, batch = state_and_batch(config)
    norms: list[float] = []
    step = state.optimizer.step

    def measure() -> None:
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in state.trained.values()]).item())  # pyright: ignore[reportArgumentType]
        step()

    state.optimizer.step = measure  # type: ignore[method-assign]
    metrics = train_step(state, batch)
    assert metrics.grad_norm.item() > 1e-3
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_cfg_training_aims_at_the_guided_velocity(make_config: Callable[..., RunConfig]) -> None:
    """Strength 1 is plain training; a larger one changes captioned samples only."""
    config = make_config(
        training={"cfg_scale_strength": 5.0}, dataloader={"uncond_percentage": 0.5, "batch_size": 16}
    )
    state, batch = state_and_batch(config)
    plain = type(state.objective)(**{**state.objective.__dict__, "cfg_strength": None})
    unit = type(state.objective)(**{**state.objective.__dict__, "cfg_strength": 1.0})
    with torch.no_grad():
        losses = {
            name: sample_losses(state.model, batch, o)
            for name, o in {"plain": plain, "unit": unit, "five": state.objective}.items()
        }
    assert 0 < batch.is_captioned.sum() < 16
    torch.testing.assert_close(losses["unit"], losses["plain"])
    changed = (losses["five"] - losses["plain"]).abs() > 1e-7
    assert torch.equal(changed, batch.is_captioned)


def test_x0_prediction_compares_velocities(make_config: Callable[..., RunConfig]) -> None:
    """A network that answers with the image itself has no error; |error| is weighted by 1 / (t + 0.05)^2."""
    state, batch = state_and_batch(make_config(model={"use_x0": True}))

    class Answers(Chroma):
        def __init__(self, offset: float):
            torch.nn.Module.__init__(self)
            self.offset = offset

        def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
            return batch.latents + self.offset

    batch = batch.part(0, 4)
    equal_length = LatentBatch(**{**batch.__dict__, "texts": [batch.texts[0]] * 4})
    assert sample_losses(Answers(0.0), equal_length, state.objective).abs().max() < 1e-9
    expected = (0.1 / (batch.noise_level + 0.05)).square()
    torch.testing.assert_close(
        sample_losses(Answers(0.1), equal_length, state.objective), expected, rtol=1e-3, atol=1e-6
    )


def test_updates_cut_a_batch_completely(make_config: Callable[..., RunConfig]) -> None:
    _, batch = state_and_batch(make_config(dataloader={"batch_size": 7}))
    for sizes in ([7], [3, 4], [2, 0, 5], [1] * 7):
        parts = list(updates_of(batch, sizes, 0))
        assert [len(part) for part in parts] == sizes
        assert torch.equal(torch.cat([part.noise for part in parts]), batch.noise)
    assert [len(part) for part in updates_of(batch, [2, 1, 4], 1)] == [1, 4]


def test_noise_is_that_of_the_row_and_its_showing(
    make_config: Callable[..., RunConfig], synthetic_data: Path, tmp_path: Path
) -> None:
    """On any rank, however its batch is cut, and if another row cannot be read; in each epoch another one."""
    folder = tmp_path / "images"
    shutil.copytree(synthetic_data, folder)
    (folder / "03.png").write_bytes(b"no image")
    data = {"jsonl_metadata_path": str(folder / "data.jsonl"), "image_folder_path": str(folder)}
    config = make_config(objective={"pairing": "random"}, dataloader={"batch_size": 5} | data)
    of_sizes: list[dict[tuple[int, int], tuple[float, float]]] = []
    for ranks in ([Ranks()], [LoneRank(rank, 3) for rank in range(3)]):
        found: dict[tuple[int, int], tuple[float, float]] = {}
        for rank in ranks:
            parts = build(config, rank)
            for loaded in chain(parts.loader.batches(0), parts.loader.batches(1)):
                encoded = parts.encoders.encode(loaded) if loaded.samples else None
                batch = prepare(parts.state, loaded, encoded)
                for sample, noise, level in zip(loaded.samples, batch.noise, batch.noise_level, strict=True):
                    found[sample.row, sample.showing] = noise.sum().item(), level.item()
        of_sizes.append(found)
    one, three = of_sizes
    assert one == three
    assert one.keys() == {(row, showing) for row in range(22) if row != 3 for showing in (0, 1)}
    noises, levels = (set(column) for column in zip(*one.values(), strict=True))
    assert len(noises) == len(levels) == 42


def test_a_step_never_waits_for_the_device(make_config: Callable[..., RunConfig]) -> None:
    """Nothing between the batch and the metrics reads a tensor's value on the CPU."""
    state, batch = state_and_batch(make_config())
    read: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # pyright: ignore[reportAttributeAccessIssue, reportUntypedBaseClass]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                read.append(str(func))
            return func(*args, **(kwargs or {}))

    train_step(state, batch)
    with Watch():
        train_step(state, batch)
    assert read == []


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"lora": {"rank": 2, "alpha": 2}},
        {"objective": {"mask_mode": "flow_union"}},
        {"training": {"cfg_scale_strength": 3.0}, "objective": {"loss": "huber"}},
        {"memory": {"checkpointed_blocks": "all"}},
        {"memory": {"checkpointed_blocks": "all", "checkpointed_parts": "ffn"}},
    ],
    ids=lambda sections: ",".join(sections) or "full",
)
@pytest.mark.parametrize("overhead", [0, 1000])
def test_a_step_makes_nothing_on_the_cpu(
    make_config: Callable[..., RunConfig], sections: Any, overhead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index or a mask made there would have to be sent, and the CPU waits for the device with that."""
    monkeypatch.setitem(ragged.OVERHEAD_TOKENS, "meta", overhead)
    state, batch = state_and_batch(make_config(dataloader={"batch_size": 8}, **sections))

    def there(value: Any) -> Any:
        if isinstance(value, list):
            return [there(each) for each in value]
        if isinstance(value, dict):
            return {name: there(tensor) for name, tensor in value.items()}
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    batch = LatentBatch(**{name: there(value) for name, value in batch.__dict__.items()})
    objective = replace(state.objective, empty_text=there(state.objective.empty_text))
    here: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # pyright: ignore[reportAttributeAccessIssue, reportUntypedBaseClass]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            here.extend(str(func) for one in tree_leaves(found) if getattr(one, "is_cpu", False))
            return found

    model = state.model.to("meta")
    with Watch():
        sample_losses(model, batch, objective).sum().backward()
    assert here == []


def test_flows_mask_shows_every_sample_as_much_text_as_the_longest_has(
    make_config: Callable[..., RunConfig],
) -> None:
    """Beyond a caption stand T5's own states of padding; the longest one's sample is the same either way."""
    batches = {}
    for mode in ("per_sample", "flow_union"):
        config = make_config(objective={"mask_mode": mode}, dataloader={"batch_size": 8})
        state, batch = state_and_batch(config)
        with torch.no_grad():
            batches[mode] = sample_losses(state.model, batch, state.objective), batch
    (own, batch), (union, _) = batches["per_sample"], batches["flow_union"]
    lengths = torch.tensor(batch.text_lengths)
    longest = lengths == lengths.max()
    assert 0 < longest.sum() < len(batch)
    torch.testing.assert_close(union[longest], own[longest], rtol=1e-4, atol=1e-5)
    assert ((union - own).abs()[~longest] > 1e-5).all()
