"""The trained weights at each step: rotation, keywords, the learning rate, the average."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.checkpoint import save
from flowloom.engine.collate import prepare
from flowloom.engine.ema import AT_ONCE, Ema
from flowloom.engine.lr import lr_factor
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.shard_files import SaveGroup
from flowloom.engine.snapshot import take_snapshot
from flowloom.engine.step import train_step
from flowloom.engine.trainable import rotated_blocks, rotation_at, trained_names
from flowloom.errors import ConfigError
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events

ROTATION = {"change_layer_every": 3, "trained_single_blocks": 2, "trained_double_blocks": 1}


def test_rotation_trains_every_block_equally_often() -> None:
    config = RunConfig.model_validate({"training": ROTATION})
    counts = Counter(
        name
        for turn in range(19 * 38)
        for name in rotated_blocks(config, {"double_blocks": 19, "single_blocks": 38}, turn)
    )
    assert len(counts) == 57
    assert {count for name, count in counts.items() if name.startswith("double")} == {38}
    assert {count for name, count in counts.items() if name.startswith("single")} == {38}


def test_a_turn_lasts_change_layer_every_steps() -> None:
    config = RunConfig.model_validate({"training": ROTATION})
    assert [rotation_at(config, step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_rotation_trains_the_chosen_blocks_and_those_that_are_always_trained() -> None:
    config = RunConfig.model_validate({"training": ROTATION})
    names = [f"{kind}.{i}.w" for kind, n in (("double_blocks", 3), ("single_blocks", 12)) for i in range(n)]
    names += [
        "img_in.weight",
        "txt_in.bias",
        "final_layer.linear.weight",
        "distilled_guidance_layer.in_proj.weight",
    ]
    chosen = trained_names(config, names, rotation=0)
    blocks = {name.rsplit(".", 1)[0] for name in chosen if "blocks" in name}
    assert blocks == set(rotated_blocks(config, {"double_blocks": 3, "single_blocks": 12}, 0))
    assert set(chosen) - {f"{b}.w" for b in blocks} == set(names[-4:-1])


def test_keywords_choose_by_part_of_the_name_and_never_the_approximator() -> None:
    config = RunConfig.model_validate({"training": {"trained_layer_keywords": ["blocks.1.", "layers.0"]}})
    names = ["double_blocks.1.w", "double_blocks.10.w", "distilled_guidance_layer.layers.0.w"]
    assert trained_names(config, names, 0) == ["double_blocks.1.w"]
    nothing = RunConfig.model_validate({"training": {"trained_layer_keywords": ["nope"]}})
    with pytest.raises(ConfigError, match="nope"):
        trained_names(nothing, names, 0)


def test_without_trained_inputs_the_backward_pass_stops_at_the_lowest_trained_block(
    make_config: Callable[..., RunConfig],
) -> None:
    training = {"change_layer_every": 100, "trained_single_blocks": 1, "trained_double_blocks": 0}
    config = make_config(training=training, method={"always_trained": ["final_layer"]})
    parts = build(config, Ranks())
    graphs: dict[str, bool] = {}

    def note(name: str, block: torch.nn.Module) -> None:
        def keeps_a_graph(_module: object, _inputs: object, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            graphs[name] = any(tensor.requires_grad for tensor in outputs)

        block.register_forward_hook(keeps_a_graph)

    for name, block in parts.state.model.blocks():  # pyright: ignore[reportCallIssue]
        note(name, block)
    loaded = next(iter(parts.loader.batches(0)))
    batch = prepare(parts.state, loaded, parts.encoders.encode(loaded))
    train_step(parts.state, batch)
    trained = {name.rsplit(".", 1)[0] for name in parts.state.trained if "blocks" in name}
    lowest = min(i for i, name in enumerate(graphs) if any(t.startswith(f"{name}.") for t in trained))
    assert 0 < lowest < len(graphs)
    assert list(graphs.values()) == [i >= lowest for i in range(len(graphs))]


@pytest.mark.parametrize("states", ["keep", "reset"])
def test_rotation_keeps_or_resets_the_moments_of_a_block(
    make_config: Callable[..., RunConfig], states: str
) -> None:
    """Two turns later the same block trains again: with its own moments, or from zero."""
    training = {
        "change_layer_every": 1,
        "trained_single_blocks": 2,
        "trained_double_blocks": 0,
        "warmup_steps": 0,
    }
    config = make_config(training=training, method={"rotation_states": states}, limits={"max_steps": 9})
    parts = build(config, Ranks())
    state = parts.state
    loaded = next(iter(parts.loader.batches(0)))
    seen: dict[str, int] = {}
    for _ in range(4):
        state.rotate_if_due()
        before = state.optimizer_states()
        block = next(name for name in state.trained if name.startswith("single_blocks"))
        if block in seen and states == "keep":
            assert int(before[block]["step"]) == seen[block]
        else:
            assert block not in before
        train_step(state, prepare(state, loaded, parts.encoders.encode(loaded)))
        for name in state.trained:
            seen[name] = seen.get(name, 0) + 1
    assert max(seen.values()) > 1


def test_warmup_climbs_as_flow_does() -> None:
    """Multipliers 0.24 0.43 0.62 0.81 1.0 for five steps, none for one (FLOW's scheduler steps first)."""
    five = RunConfig.model_validate({"training": {"warmup_steps": 5}})
    assert [round(lr_factor(five, step), 2) for step in range(1, 8)] == [
        0.24,
        0.43,
        0.62,
        0.81,
        1.0,
        1.0,
        1.0,
    ]
    one = RunConfig.model_validate({"training": {"warmup_steps": 1}})
    assert lr_factor(one, 1) == lr_factor(one, 1000, progress=1.0) == 1.0


def test_schedules_end_where_they_should() -> None:
    for kind in ("cosine", "wsd"):
        config = RunConfig.model_validate(
            {
                "lr_schedule": {"kind": kind, "min_ratio": 0.1, "decay_share": 0.25},
                "limits": {"max_steps": 100},
            }
        )
        factors = [lr_factor(config, step, (step - 1) / 100) for step in range(1, 102)]
        assert factors[-1] == pytest.approx(0.1), "after the last step"
        assert factors[0] == 1.0
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(factors))
        if kind == "wsd":
            assert factors[75] == 1.0 > factors[76]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant"}, [0.525, 1, 1, 1]),
        ({"kind": "cosine"}, [0.525, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ({"kind": "wsd", "decay_share": 0.5}, [0.525, 1, 1, 0.5]),
        ({"kind": "wsd", "decay_share": 0.5, "min_ratio": 0.2}, [0.525, 1, 1, 0.6]),
    ],
    ids=["constant", "cosine", "wsd", "wsd to a fifth"],
)
def test_events_report_the_rate_that_each_update_used_and_none_is_zero(
    make_run: Callable[..., RunDir], schedule: dict[str, Any], expected: list[float]
) -> None:
    """After a warm-up of two steps; a run that is stopped and resumed reports the same."""
    sections = {
        "lr_schedule": schedule,
        "limits": {"max_steps": 4},
        "training": {"warmup_steps": 2, "lr": 1e-3},
    }
    run_dir = make_run(**sections)

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] in (1, 3):
            run_dir.request("stop")

    for _ in range(3):
        run_engine(run_dir, stop)
    steps = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]
    assert [event["lr"] for event in steps] == pytest.approx([1e-3 * share for share in expected])


def test_the_last_update_of_an_epoch_is_reported_as_of_that_epoch(make_run: Callable[..., RunDir]) -> None:
    """And its rate has not reached the end of the decay, where a batch makes several updates too."""
    run_dir = make_run(
        lr_schedule={"kind": "cosine"},
        training={"updates_per_large_batch": 2, "warmup_steps": 0},
        dataloader={"batch_size": 11, "ratio_cutoff": 1.5},
        limits={"max_steps": None, "max_epochs": 2},
    )
    run_engine(run_dir)
    steps = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]
    places = [(event["epoch"], event["batch"]) for event in steps]
    assert places == [(epoch, batch) for epoch in (0, 1) for batch in (0, 1) for _ in range(2)]
    expected = [0.5e-3 * (1 + math.cos(math.pi * number / 8)) for number in range(8)]
    assert [event["lr"] for event in steps] == pytest.approx(expected)


@pytest.mark.parametrize("limits", [{"max_steps": 12}, {"max_epochs": 2}, {"max_minutes": 0.05}])
def test_the_rate_falls_towards_the_limit_that_ends_the_run(
    make_run: Callable[..., RunDir], limits: dict[str, float]
) -> None:
    schedule = {"kind": "wsd", "decay_share": 1.0, "min_ratio": 0.0}
    rates: list[float] = []
    run_engine(
        make_run(lr_schedule=schedule, limits={"max_steps": None} | limits, training={"warmup_steps": 0}),
        lambda event: rates.append(event["lr"]) if event["kind"] == "step" else None,
    )
    assert rates[0] > 0.85e-3
    assert rates[-1] < 0.15e-3
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_average_is_float32_and_follows(dtype: torch.dtype, on_cpu: bool) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=dtype))
    ema = Ema(0.999, on_cpu)
    ema.follow({"w": weight})
    expected = 1.0
    for step in range(1, 200):
        with torch.no_grad():
            weight.fill_(step)
        ema.update({"w": weight}, step)
        decay = min(0.999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.shadow["w"].dtype == torch.float32
    torch.testing.assert_close(ema.shadow["w"], torch.full((3,), expected))
    with ema.swapped_in({"w": weight}):
        assert weight[0].item() == pytest.approx(expected, rel=1e-2)
    assert weight[0].item() == step  # pyright: ignore[reportPossiblyUnboundVariable]


class Alive(TorchDispatchMode):
    """Counts the copies in another number format that are held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.copies.add(made)
            self.most = max(self.most, len(self.copies))
        return made


def test_the_average_copies_few_weights_at_a_time() -> None:
    weights = {str(i): nn.Parameter(torch.ones(2, dtype=torch.bfloat16)) for i in range(100)}
    ema = Ema(0.9, on_cpu=False)
    ema.follow(weights)
    with Alive() as alive:
        ema.update(weights, 1)
    assert 0 < alive.most <= 2 * AT_ONCE


def test_a_save_makes_one_tensor_at_a_time_of_the_number_format_that_it_writes(
    make_run: Callable[..., RunDir],
) -> None:
    """Another whole network beside the trained one may be more than the device holds."""
    run_dir = make_run(ema={"decay": 0.9}, parallel={"device": "cpu", "dtype": "bf16"})
    state = build(run_dir.read_config(), Ranks()).state
    assert len(state.trained) > 20
    with Alive() as alive:
        save(run_dir, take_snapshot(state, {}), SaveGroup())
    assert 0 < alive.most <= 2
