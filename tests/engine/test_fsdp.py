"""Sharded runs equal the run of one rank, up to the order of sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.checkpoint import EMA, MODEL, OPTIMIZER, SHARDS, WEIGHTS
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.parallel.strategy import with_strategy
from flowloom.engine.shard_files import open_shards
from flowloom.errors import ConfigError
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.radiance import Radiance, RadianceParams
from flowloom.nn.tiny import TINY, random_chroma_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.engine.processes import run_all_on_ranks
from tests.engine.test_flux1_training import model_section

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

SMALLER = replace(
    TINY,
    hidden_size=64,
    num_heads=2,
    depth_single_blocks=3,
    approximator_depth=1,
    approximator_hidden_size=64,
)
STEPS = 4
TRAINING = {"lr": 1e-3, "warmup_steps": 2, "train_minibatch": 2}
ROTATION = TRAINING | {"change_layer_every": 1, "trained_single_blocks": 1, "trained_double_blocks": 1}
PREVIEW = {"inference_every": 2, "steps": 2, "prompts": ["red, bar"], "image_dim": [64, 64], "cfg": 2.0}
LORA = {"rank": 2, "alpha": 2}
CASES: dict[str, dict[str, Any]] = {
    "full": {
        # On 4 ranks some have two micro-batches, some one or none.
        "training": TRAINING | {"train_minibatch": 1},
        "ema": {"decay": 0.9},
        "validation": {"share": 0.2, "every": 2, "max_rows": 4},
        "inference": PREVIEW,
        "optimizer": {"max_grad_norm": 0.01},
    },
    "updates": {
        "training": TRAINING | {"updates_per_large_batch": 3},
        "memory": {"checkpointed_blocks": "all", "offload_activations": True},
    },
    "keywords": {"training": TRAINING | {"trained_layer_keywords": ["double_blocks.1.", "final_layer"]}},
    "rotation": {"training": ROTATION, "ema": {"decay": 0.9}},
    "rotation-reset": {"training": ROTATION, "method": {"rotation_states": "reset"}},
    "lora": {"lora": LORA, "ema": {"decay": 0.9}, "optimizer": {"max_grad_norm": 0.01}},
    "lora-8bit": {"lora": LORA | {"base_model_quant_level": "8bit"}, "memory": {"checkpointed_blocks": 2}},
    "lora-int8": {
        "lora": LORA | {"base_model_quant_level": "8bit"},
        "method": {"base_products": "int8"},
    },
    "dora": {"lora": LORA, "method": {"kind": "dora"}},
    "lokr": {"lora": LORA, "method": {"kind": "lokr"}},
    "guided": {"training": TRAINING | {"cfg_scale_strength": 2.0}},
    "flux1": {"memory": {"checkpointed_blocks": 1}},
    "radiance": {"memory": {"checkpointed_blocks": 1}},
    "mixed-formats": {"training": ROTATION, "method": {"rotation_states": "reset"}},
    "lora-bf16": {"lora": LORA, "memory": {"checkpointed_blocks": "all"}},
    "host": {"optimizer": {"device": "cpu", "max_grad_norm": 0.01}, "ema": {"decay": 0.9}},
    "streamed": {"optimizer": {"device": "cpu"}, "memory": {"streamed_blocks": 2}},
    "lora-streamed": {"lora": LORA, "memory": {"streamed_blocks": "all"}},
    "bf16": {"optimizer": {"kind": "adamw_bf16", "max_grad_norm": 0.01}},
}
"""Batches of 5, 5 and 4, 5, 3 rows: of some, a rank has nothing."""
ROUNDED = {
    "lora-bf16": {"dtype": "bf16"},
    "mixed-formats": {"dtype": "bf16"},
    "bf16": {"dtype": "bf16"},
    "lora-int8": {},
}
"""Number formats in which the order of sums shows."""
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1": (1, {}),
    "2": (2, {"strategy": "fsdp"}),
    "4": (4, {"strategy": "fsdp"}),
    "2x2": (4, {"strategy": "fsdp", "shard_ranks": 2}),
    "2-whole": (2, {"strategy": "ranks"}),
    "4-whole": (4, {"strategy": "ranks"}),
}
SHARDED = ("2", "4", "2x2")
PAIRS = [(case, "2") for case in CASES] + [
    (case, layout) for case in ("full", "rotation", "lora") for layout in ("4", "2x2")
]
RESUMED = [
    ("rotation", "1", "2"),
    ("full", "2", "1", "4"),
    ("lora", "2", "2x2"),
    ("keywords", "2x2", "1"),
    ("full", "2-whole", "4"),
    ("rotation", "2", "4-whole"),
]
"""A part of the steps in one layout, then a part in another."""
Runs = dict[tuple[str, ...], RunDir]


@pytest.fixture(scope="module")
def runs(
    make_config: Callable[..., RunConfig], tiny_flux1_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    """Every case on one rank, and in each layout that it is tested in."""
    root = tmp_path_factory.mktemp("sharded")
    models = {"flux1": model_section(tiny_flux1_dir), "radiance": small_radiance(root)}
    chroma = small_chroma(root)
    made: Runs = {}
    for case, layout, *then in [*((case, "1") for case in CASES), *PAIRS, *RESUMED]:
        parallel = {"device": "cpu", "num_threads": 1, **ROUNDED.get(case, {}), **LAYOUTS[layout][1]}
        defaults = {
            "training": TRAINING,
            "dataloader": {"batch_size": 5},
            "limits": {"max_steps": STEPS // (1 + len(then))},
            "model": models.get(case, chroma),
        }
        run_dir = made[case, layout, *then] = RunDir.create("-".join((case, layout, *then)), root)
        run_dir.write_run(make_config(**(defaults | CASES[case]), parallel=parallel), "a test")
    waiting = {run_dir: [*layouts] for (_, *layouts), run_dir in made.items()}
    for size in (1, 2, 4, 1, 4):
        now = [run_dir for run_dir, layouts in waiting.items() if layouts and LAYOUTS[layouts[0]][0] == size]
        train(now, size)
        for run_dir in now:
            waiting[run_dir].pop(0)
            if waiting[run_dir]:
                resume_in(LAYOUTS[waiting[run_dir][0]][1], run_dir, STEPS // len(waiting[run_dir]))
    return made


def small_chroma(folder: Path) -> dict[str, str]:
    """A random network in which no weight is zero, for the section `model`."""
    draw = torch.Generator().manual_seed(1)
    network = {
        name: weight + 0.02 * torch.randn(weight.shape, generator=draw)
        for name, weight in random_chroma_weights(SMALLER, seed=1).items()
    }
    save_weights(folder / "chroma.safetensors", network, {})
    return {"chroma_path": str(folder / "chroma.safetensors")}


def small_radiance(folder: Path) -> dict[str, str]:
    """A random network on pixels, for the section `model`."""
    params = RadianceParams(768, 128, 64, 4.0, 2, 2, 3, (4, 14, 14), 10_000, True, 64, 1, 64, 16, 8, 2, 2, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        save_weights(folder / "radiance.safetensors", Radiance(params).state_dict(), {})
    return {"path": str(folder / "radiance.safetensors"), "chroma_path": ""}


def train(run_dirs: Sequence[RunDir], num_ranks: int) -> None:
    if num_ranks > 1:
        assert run_all_on_ranks(run_dirs, num_ranks) == 0
    else:
        for run_dir in run_dirs:
            run_engine(run_dir)


def resume_in(parallel: dict[str, Any], run_dir: RunDir, max_steps: int) -> None:
    wanted = {"strategy": "auto", "shard_ranks": 0} | parallel
    flags = [(f"parallel.{key}", str(value)) for key, value in wanted.items()]
    change_by_flags(run_dir, [*flags, ("limits.max_steps", str(max_steps))])


def events_of(run_dir: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == kind]


def tensors_of(run_dir: RunDir) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, in either layout: exports, exact weights, average, moments."""
    folder = run_dir.latest_checkpoint()
    assert folder is not None
    files = sorted(folder.rglob("*.safetensors"))
    found = {f"{path.name}:{name}": tensor for path in files for name, tensor in open_weights(path).items()}
    states = torch.load(folder / "state" / OPTIMIZER, weights_only=True)
    for kind in ("optimizer", "parked"):
        for name, kept in states[kind].items():
            found |= {f"{kind}/{name}/{key}": value for key, value in kept.items()}
    shards = folder / "state" / SHARDS
    if shards.exists():
        found |= {f"{EMA}:{name}": tensor for name, tensor in open_shards(shards, "average").items()}
        for kind in ("optimizer", "parked"):
            found |= {f"{kind}/{key}": value for key, value in open_shards(shards, kind).items()}
        exported = open_weights(folder / MODEL).dtypes
        exact = open_shards(shards, "weights")
        assert exact.keys() == exported.keys()
        found |= {f"{WEIGHTS}:{name}": t for name, t in exact.items() if t.dtype != exported[name]}
    return found


def assert_equal(alone: RunDir, sharded: RunDir) -> None:
    """Up to the order of sums."""
    expected, found = events_of(alone, "step"), events_of(sharded, "step")
    assert len(expected) == len(found) == STEPS
    for before, after in zip(expected, found, strict=True):
        for key in ("step", "epoch", "batch", "lr"):
            assert after[key] == before[key]
        for key in ("loss", "grad_norm"):
            assert after[key] == pytest.approx(before[key], rel=1e-5), (before["step"], key)
    weights, others = tensors_of(alone), tensors_of(sharded)
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        difference = (others[key].double() - weight.double()).abs()
        # Adam turns a gradient near 0 into a step of full size, in either direction.
        assert difference.max() < 5e-4, key
        assert difference.mean() < 1e-5, key
    assert not events_of(sharded, "warning")


@pytest.mark.slow
@pytest.mark.parametrize(("case", "layout"), [pair for pair in PAIRS if pair[0] not in ROUNDED])
def test_a_sharded_run_equals_that_of_one_rank(runs: Runs, case: str, layout: str) -> None:
    assert_equal(runs[case, "1"], runs[case, layout])
    (started,) = events_of(runs[case, layout], "started")
    shown = {"2": "2 ranks", "4": "4 ranks", "2x2": "4 ranks in groups of 2"}
    assert started["device"] == f"cpu, sharded over {shown[layout]}"


@pytest.mark.slow
@pytest.mark.parametrize("path", RESUMED, ids=" to ".join)
def test_a_run_resumes_in_another_layout(runs: Runs, path: tuple[str, ...]) -> None:
    assert_equal(runs[path[0], "1"], runs[path])


@pytest.mark.slow
@pytest.mark.parametrize("case", ROUNDED)
def test_bfloat16_is_rounded_about_as_on_one_rank(runs: Runs, case: str) -> None:
    expected, found = (events_of(runs[case, layout], "step") for layout in ("1", "2"))
    for before, after in zip(expected, found, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.01)
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=0.05)
    weights, others = tensors_of(runs[case, "1"]), tensors_of(runs[case, "2"])
    for name, weight in weights.items():
        assert (others[name].float() - weight.float()).abs().mean() < 5e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("layout", SHARDED)
def test_validation_and_previews_are_those_of_one_rank(runs: Runs, layout: str) -> None:
    alone, sharded = runs["full", "1"], runs["full", layout]
    expected, found = events_of(alone, "validated"), events_of(sharded, "validated")
    assert [event["weights"] for event in expected] == ["raw", "ema"] * 2
    for before, after in zip(expected, found, strict=True):
        assert after["by_quantile"] == pytest.approx(before["by_quantile"], rel=1e-5)
    images = sorted(path.relative_to(alone.path) for path in alone.path.glob("samples/*/*.png"))
    assert len(images) == 4  # of the prompt and of a caption, twice
    for image in images:
        with Image.open(alone.path / image) as mine, Image.open(sharded.path / image) as other:
            difference = np.asarray(mine, np.int16) - np.asarray(other, np.int16)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"parallel": {"strategy": "ranks", "shard_ranks": 2}}, "parallel.shard_ranks"),
        ({"parallel": {"strategy": "fsdp"}, "optimizer": {"kind": "adamw8bit"}}, "optimizer.kind"),
        ({"parallel": {"strategy": "fsdp"}, "optimizer": {"kind": "adamw_lowbit"}}, "optimizer.kind"),
        (
            {"parallel": {"strategy": "fsdp"}, "lora": {"base_model_quant_level": "4bit"}},
            "lora.base_model_quant_level",
        ),
        ({"parallel": {"strategy": "fsdp"}, "memory": {"fused_backward": True}}, "memory.fused_backward"),
    ],
)
def test_a_run_that_cannot_be_sharded_is_rejected_by_the_key(sections: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(sections)
    assert f"{where}: " in str(caught.value)


@pytest.fixture
def one_of_two() -> Iterator[Ranks]:
    """The first of two ranks as far as it can tell; sums over its group of one are its numbers."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 2)
    torch.distributed.destroy_process_group()


LOW_BIT = {"optimizer": {"kind": "adamw8bit"}}


@pytest.mark.parametrize(
    ("sections", "free_gib", "strategy"),
    [
        ({}, 64, "ranks"),
        ({}, 0.01, "fsdp"),
        (LOW_BIT, 0.01, "ranks"),
        ({"parallel": {"strategy": "ranks"}}, 0.01, "ranks"),
    ],
    ids=["fits", "does-not-fit", "cannot-be-sharded", "chosen"],
)
def test_auto_shards_only_what_does_not_fit_one_device(
    make_config: Callable[..., RunConfig],
    one_of_two: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    free_gib: float,
    strategy: str,
) -> None:
    pages = int(2 * free_gib * 2**30 / os.sysconf("SC_PAGE_SIZE"))
    plain = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_AVPHYS_PAGES" else plain(name))
    config = make_config(**sections)
    assert with_strategy(config, one_of_two).parallel.strategy == strategy
    assert with_strategy(config, Ranks()) == config


def test_groups_that_do_not_divide_the_ranks_are_rejected(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(parallel={"strategy": "fsdp", "shard_ranks": 3})
    with pytest.raises(ConfigError, match=r"parallel.shard_ranks: 3 does not divide the 4 ranks"):
        with_strategy(config, Ranks(0, 4))
