"""Memory plans: they fit, change no explicit value, take no more than needed, and are what the run does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.config.run import RunConfig
from flowloom.engine.build import build
from flowloom.engine.estimate.advise import advise
from flowloom.engine.estimate.fit_table import fit_table, fit_text
from flowloom.engine.estimate.memory_plan import (
    Machine,
    MemoryPlan,
    plan_memory,
    require_host_memory,
    snapshot_hint,
)
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.estimate.speed import ASSUMED
from flowloom.engine.memory import HEADROOM, Choice
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import ConfigError
from flowloom.nn.chroma import CHROMA1, Chroma
from flowloom.nn.radiance import RADIANCE1, Radiance
from flowloom.run.preflight import FitReport
from flowloom.trainers.engine import PRESETS

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LORA = {"lora": {"rank": 16, "alpha": 16}}
CACHED = {"cache": {"latents": "disk", "text": "disk"}}
GIB = 2**30
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chroma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released network's file, with the header and a hole in place of 18 GB of weights."""
    with torch.device("meta"):
        return write_hole(tmp_path_factory.mktemp("released") / "chroma.safetensors", Chroma(CHROMA1))


def write_hole(path: Path, network: torch.nn.Module) -> Path:
    """A file with the header of `network` and no weights."""
    entries, start = {}, 0
    for name, weight in network.state_dict().items():
        stop = start + 2 * weight.numel()
        entries[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [start, stop]}
        start = stop
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + start)
    return path


@pytest.fixture(scope="module")
def make_released(chroma_path: Path) -> Callable[..., RunConfig]:
    """A configuration of the released network whose encodings are on disk."""

    def make(**sections: Any) -> RunConfig:
        training = {"train_minibatch": 1} | sections.pop("training", {})
        model = {"chroma_path": str(chroma_path)}
        return RunConfig.model_validate(CACHED | {"model": model, "training": training} | sections)

    return make


@pytest.fixture(scope="module")
def lora(make_released: Callable[..., RunConfig]) -> tuple[RunConfig, Networks]:
    config = make_released(**LORA, dataloader={"base_resolution": [1024]})
    return config, Networks.from_config(config)


def on_cards(config: RunConfig, networks: Networks, **machine: Any) -> list[MemoryPlan]:
    """Plans for cards of 80 GiB down to 4 GiB."""
    return [plan_memory(config, networks, Machine(CUDA, gib * GIB, **machine)) for gib in range(80, 3, -1)]


def test_a_smaller_card_costs_time_and_the_plan_fits_as_long_as_any(lora: tuple[RunConfig, Networks]) -> None:
    plans = on_cards(*lora)
    assert plans[0].choice == Choice()
    assert plans[0].measures == ()
    fit = [plan.fits for plan in plans]
    assert fit == sorted(fit, reverse=True)
    assert sum(fit) > 70
    slow_downs = [plan.slow_down for plan in plans if plan.fits]
    assert slow_downs == sorted(slow_downs)
    assert any(plan.choice.ffn for plan in plans)
    assert any(0 < plan.choice.blocks < 57 for plan in plans)
    assert any(0 < plan.choice.streamed < 57 and plan.choice.is_offloaded for plan in plans)
    assert plans[-1].choice.streamed > 50
    for plan in plans:
        assert sum(taken.slow_down for taken in plan.measures) == pytest.approx(plan.slow_down)
        assert sum(taken.saved for taken in plan.measures) == plans[0].total - plan.total


def test_a_plan_takes_no_more_of_a_measure_than_needed(lora: tuple[RunConfig, Networks]) -> None:
    config, networks = lora
    for plan in on_cards(config, networks)[:70]:
        choice = plan.choice
        less = {
            "checkpointed_blocks": choice.blocks - 1 if choice.blocks and not choice.ffn else None,
            "streamed_blocks": choice.streamed - 1 if choice.streamed else None,
        }
        for key, value in less.items():
            if value is None or (key == "checkpointed_blocks" and (choice.streamed or choice.is_offloaded)):
                continue
            explicit = {
                "checkpointed_parts": "block",
                "checkpointed_blocks": choice.blocks,
                "streamed_blocks": 0,
            }
            explicit |= {"offload_activations": choice.is_offloaded} | {key: value}
            changed = RunConfig.model_validate(config.model_dump() | {"memory": explicit})
            assert plan_memory(changed, networks, Machine(CUDA, int(plan.room / HEADROOM))).total > plan.room


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({"checkpointed_blocks": 3, "streamed_blocks": 0, "offload_activations": False}, Choice(3)),
        ({"checkpointed_blocks": 5, "checkpointed_parts": "ffn"}, Choice(0, 5)),
        ({"streamed_blocks": 9, "offload_activations": False}, Choice(57, 0, 9)),
        (
            {"checkpointed_blocks": 4, "offload_activations": True, "streamed_blocks": 0},
            Choice(4, 0, 0, True),
        ),
    ],
)
def test_explicit_values_are_kept_on_every_card(
    lora: tuple[RunConfig, Networks], memory: dict[str, Any], expected: Choice
) -> None:
    config = RunConfig.model_validate(lora[0].model_dump() | {"memory": memory})
    assert {plan.choice for plan in on_cards(config, lora[1])} == {expected}


def test_a_key_that_is_auto_is_planned_beside_explicit_ones(lora: tuple[RunConfig, Networks]) -> None:
    plan = partial(plan_memory, networks=lora[1], machine=Machine(CUDA, 12 * GIB))
    for memory, streams in (({"checkpointed_blocks": "all"}, True), ({"checkpointed_blocks": 56}, False)):
        choice = plan(RunConfig.model_validate(lora[0].model_dump() | {"memory": memory})).choice
        assert choice.blocks == (57 if memory["checkpointed_blocks"] == "all" else 56)
        assert bool(choice.streamed) == streams
    only_ffn = RunConfig.model_validate(lora[0].model_dump() | {"memory": {"checkpointed_parts": "ffn"}})
    assert plan(only_ffn).choice == Choice(0, 57)


def test_slow_copies_make_streaming_expensive_and_fast_ones_free(lora: tuple[RunConfig, Networks]) -> None:
    def slow_down(copy: float) -> float:
        speed = ASSUMED._replace(copy_bytes_per_s=copy)
        return plan_memory(*lora, Machine(CUDA, 12 * GIB, speed=speed)).slow_down

    # Recomputation alone costs 0.65 of a forward pass, about half of a LoRA's step.
    assert slow_down(1e15) < 0.4
    assert slow_down(2e9) > 10 * slow_down(1e15)


def test_the_order_of_measures_follows_the_speeds(lora: tuple[RunConfig, Networks]) -> None:
    """Blocks recompute where copies are slow; where products are slow, every second byte is better copied."""
    config = RunConfig.model_validate(lora[0].model_dump() | {"memory": {"checkpointed_blocks": "all"}})
    slow_copies = Machine(CUDA, 16 * GIB, speed=ASSUMED._replace(copy_bytes_per_s=1e8))
    slow_products = Machine(CUDA, 16 * GIB, speed=ASSUMED._replace(product_flops_per_s=1e12))
    assert plan_memory(config, lora[1], slow_copies).slow_down > 5
    assert plan_memory(config, lora[1], slow_products).slow_down < 0.4


def test_updates_on_the_host_cost_time_unless_they_overlap(make_released: Callable[..., RunConfig]) -> None:
    def plan(updates_per_s: float, batch_size: int = 4, **memory: Any) -> MemoryPlan:
        optimizer = {"device": "cpu", "max_grad_norm": None}
        config = make_released(
            optimizer=optimizer,
            memory=memory,
            dataloader={"base_resolution": [1024], "batch_size": batch_size},
        )
        speed = ASSUMED._replace(updates_per_s=updates_per_s)
        return plan_memory(config, Networks.from_config(config), Machine(CUDA, 200 * GIB, speed=speed))

    (measure,) = plan(2e9).measures
    assert measure[:2] == ("optimizer.device", "cpu")
    assert measure.saved == pytest.approx(8.9e9 * 16 - 8.9e9 * 2, rel=0.05)
    assert plan(2e9).slow_down == pytest.approx(measure.slow_down)
    assert plan(1e9).slow_down == pytest.approx(2 * plan(2e9).slow_down)
    # Each micro-batch of a larger batch bears a smaller share of the update.
    assert plan(2e9, batch_size=8).slow_down == pytest.approx(plan(2e9).slow_down / 2)
    assert plan(1e11, batch_size=1, fused_backward=True).slow_down == 0
    assert 0 < plan(1e9, batch_size=1, fused_backward=True).slow_down < plan(1e9, batch_size=1).slow_down


def test_the_host_limits_what_is_streamed(lora: tuple[RunConfig, Networks]) -> None:
    config, networks = lora
    roomy = plan_memory(config, networks, Machine(CUDA, 12 * GIB, 64 * GIB))
    tight = plan_memory(config, networks, Machine(CUDA, 12 * GIB, 4 * GIB))
    assert roomy.fits
    assert roomy.host_total > 4 * GIB
    assert 0 < tight.choice.streamed < roomy.choice.streamed
    assert tight.host_total <= 4 * GIB
    assert not tight.fits
    every = RunConfig.model_validate(config.model_dump() | {"memory": {"streamed_blocks": "all"}})
    forced = plan_memory(every, networks, Machine(CUDA, 80 * GIB, 4 * GIB))
    with pytest.raises(ConfigError, match=r"memory\.streamed_blocks: needs 17\.\d GB of host memory"):
        require_host_memory(forced)


def test_flows_offload_param_count_limits_what_is_streamed(lora: tuple[RunConfig, Networks]) -> None:
    config, networks = lora
    machine = Machine(CUDA, 12 * GIB, 64 * GIB)
    free = plan_memory(config, networks, machine).choice.streamed
    limited = RunConfig.model_validate(config.model_dump() | {"memory": {"offload_param_count": 3 * 10**9}})
    plan = plan_memory(limited, networks, machine)
    assert 0 < plan.choice.streamed < free
    assert 0.95 * 3e9 < plan.host_parts["streamed weights"] / 2 <= 3e9
    assert not plan.fits
    changes, fits = advise(limited, networks, machine)
    assert [change.path for change in changes] == ["optimizer.kind", "lora.base_model_quant_level"]
    assert fits
    changes, _ = advise(limited, networks, Machine(CUDA, 6 * GIB, 64 * GIB))
    assert ("memory.offload_param_count", 0) in [(change.path, change.value) for change in changes]
    roomy = Machine(CUDA, 80 * GIB, 64 * GIB)
    assert plan_memory(limited, networks, roomy).choice == plan_memory(config, networks, roomy).choice
    explicit = {"memory": {"offload_param_count": 1, "streamed_blocks": 9}}
    assert (
        plan_memory(RunConfig.model_validate(config.model_dump() | explicit), networks, roomy).choice.streamed
        == 9
    )


def test_the_copy_of_a_checkpoint_is_shown_and_only_a_hint_where_it_has_no_room(
    make_released: Callable[..., RunConfig],
) -> None:
    def plan(host_gib: int, **sections: Any) -> MemoryPlan:
        config = make_released(**sections)
        return plan_memory(config, Networks.from_config(config), Machine(CUDA, 200 * GIB, host_gib * GIB))

    full = plan(200)
    assert full.snapshot == pytest.approx(8.9e9 * 12, rel=0.05)
    assert snapshot_hint(full) is None
    tight = plan(64)
    assert tight.fits
    assert "checkpoint.in_background: training waits while checkpoints are written" in str(
        snapshot_hint(tight)
    )
    assert plan(64, checkpoint={"in_background": False}).snapshot == 0
    assert plan(64, optimizer={"device": "cpu"}).snapshot == 0
    assert snapshot_hint(plan(64, **LORA)) is None


def test_a_device_that_is_the_host_is_not_offloaded_to_itself(lora: tuple[RunConfig, Networks]) -> None:
    plan = plan_memory(*lora, Machine(CPU, 8 * GIB))
    assert plan.choice == Choice(57)
    assert plan.host_parts == {}


@pytest.mark.parametrize(
    "memory", [{}, {"checkpointed_parts": "ffn"}, {"checkpointed_blocks": 2}, {"checkpointed_parts": "block"}]
)
def test_the_run_does_what_the_plan_says(
    make_config: Callable[..., RunConfig], memory: dict[str, Any]
) -> None:
    """With micro-batches that fit no machine, so that every block has to recompute where that is auto."""
    config = make_config(memory=memory, training={"train_minibatch": 10**9}, **LORA)
    components = build(config, Ranks())
    plan = components.memory_plan
    expected = plan_memory(config, Networks.from_config(config), Machine(CPU, int(plan.room / HEADROOM)))
    recompute: Any = components.state.model.recompute
    assert plan.choice == expected.choice
    assert (recompute.blocks, recompute.ffn) == plan.choice[:2]
    assert plan.choice.blocks + plan.choice.ffn == memory.get("checkpointed_blocks", 6)


def test_float32_weights_that_a_rotation_keeps_are_counted(make_released: Callable[..., RunConfig]) -> None:
    """The weights of blocks that were trained stay in float32, so that their next rotation loses nothing."""
    rotation = {"change_layer_every": 20, "trained_single_blocks": 2, "trained_double_blocks": 1}
    machine, sizes = Machine(CUDA, 200 * GIB), []
    for sections in (
        {"method": {"rotation_states": "keep"}},
        {"method": {"rotation_states": "reset"}},
        {"optimizer": {"kind": "adamw_bf16"}},
    ):
        config = make_released(training=rotation, **sections)
        sizes.append(plan_memory(config, Networks.from_config(config), machine).parts["frozen weights"])
    assert sizes[1] == sizes[2]
    assert sizes[0] / sizes[1] == pytest.approx(2, abs=0.05)


CARDS = {preset.name: preset for preset in PRESETS if preset.name.endswith("gb")}


@pytest.mark.parametrize("name", CARDS)
def test_each_preset_fits_its_card(make_released: Callable[..., RunConfig], name: str) -> None:
    kind, _, size = name.removesuffix("gb").partition("-")
    for side in (512, 1024):
        sections = dict(CARDS[name].config)
        dataloader = sections.pop("dataloader", {}) | {"base_resolution": [side]}
        config = make_released(**sections, dataloader=dataloader)
        plan = plan_memory(config, Networks.from_config(config), Machine(CUDA, int(size) * GIB, 96 * GIB))
        assert plan.fits, (side, plan.parts, plan.host_parts)
        assert kind == ("lora" if config.method_kind == "lora" else "full")


@pytest.mark.parametrize("size", [12, 16, 24])
def test_the_lora_presets_also_fit_a_network_on_pixels(tmp_path: Path, size: int) -> None:
    """Radiance is larger than Chroma, and its ends keep more; the cache of latents is not used."""
    with torch.device("meta"):
        path = write_hole(tmp_path / "radiance.safetensors", Radiance(RADIANCE1))
    sections = dict(CARDS[f"lora-{size}gb"].config) | {"model": {"path": str(path)}}
    networks = Networks.from_config(RunConfig.model_validate(sections))
    for side in (512, 1024):
        config = RunConfig.model_validate(sections | {"dataloader": {"base_resolution": [side]}})
        plan = plan_memory(config, networks, Machine(CUDA, size * GIB, 96 * GIB))
        assert plan.fits, (side, plan.parts, plan.host_parts)
        assert "vae" not in plan.parts
        assert plan.parts["activations"] > 90 * side**2 / 256 * 3072 * 2


def test_there_are_presets_for_common_cards() -> None:
    assert set(CARDS) >= {"lora-8gb", "lora-12gb", "lora-16gb", "lora-24gb", "full-16gb", "full-24gb"}


def scale_rows(fits: Sequence[FitReport]) -> list[str]:
    """The table of docs/scale.md."""
    rows = []
    for method in ("lora", "rotation", "full"):
        for side in (512, 1024):
            cells = [fit_text(fit) for fit in fits if (fit.method, fit.resolution) == (method, side)]
            rows.append(" | ".join(["", f"{method}, {side}", *cells, ""]).strip())
    return rows


def test_the_table_has_a_row_for_each_card_and_only_smaller_ones_need_more(
    make_released: Callable[..., RunConfig],
) -> None:
    fits = fit_table(make_released(**LORA))
    rows = scale_rows(fits)
    assert "\n".join(rows) in (ROOT / "docs" / "scale.md").read_text(), "\n".join(rows)
    assert len(fits) == 7 * 3 * 2
    for method in ("lora", "rotation", "full"):
        rows = [fit for fit in fits if (fit.method, fit.resolution) == (method, 1024)]
        assert [fit.fits for fit in rows] == sorted(fit.fits for fit in rows)
        assert all(fit.total <= HEADROOM * fit.gib * GIB for fit in rows if fit.fits)
    assert all(fit.fits for fit in fits if fit.method == "lora")
