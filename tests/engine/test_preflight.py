"""`flowloom preflight`: steps, rows left out, memory, disk and time are shown before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flowloom.cli.main import main
from flowloom.config.flow_format.read import LoadedConfig
from flowloom.engine.estimate.advise import advise, with_key
from flowloom.engine.estimate.footprint import checkpoint_bytes
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.estimate.preflight import Target, preflight
from flowloom.engine.estimate.preflight_text import preflight_text
from flowloom.engine.fill_cache import fill, stats
from flowloom.engine.memory import HEADROOM
from flowloom.models.weights import open_weights

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def found(make_config, tmp_path):
    def found(asked: Target | None = None, **sections):
        loaded = LoadedConfig(make_config(**sections), {}, [], Path("config.json"))
        return preflight(loaded, asked or Target(tmp_path / "runs"))

    return found


def test_steps_buckets_and_rows_left_out_are_counted(found):
    report = found(dataloader={"batch_size": 4, "ratio_cutoff": 1.5})
    assert report.data.rows == 14
    assert report.data.steps_per_epoch == 4
    assert report.data.left_out["aspect ratio beyond 1.5 to 1"] == 8
    assert [(b.rows, b.batches, b.remainder) for b in report.data.buckets] == [(14, 3, 2)]
    assert report.can_run


@pytest.mark.parametrize(
    "cache",
    [{}, {"dtype": "bf16", "caption_variants": 3}, {"sampling": "draw"}],
    ids=["auto", "bf16", "draw"],
)
def test_the_size_of_a_cache_is_what_filling_it_takes(found, make_config, tmp_path, cache):
    """Of captions about: their tokens are counted without the variants' dropped tags."""
    own = {"cache": {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache")} | cache}
    sizes = found(**own).disk.caches
    config = make_config(**own)
    fill(config)
    kinds = stats(config).kinds
    assert sizes["latents"] == kinds["image-latents"][1]
    assert sizes["caption states"] == pytest.approx(kinds["caption-states"][1], rel=0.2)


def test_keys_without_effect_are_hints_and_no_problems(found):
    result = found(lora={"rank": 2}, training={"change_layer_every": 5})
    assert result.can_run
    assert result.report().hints == ["training.change_layer_every: no effect with method lora."]


def test_memory_counts_every_weight_once(make_config, tiny_family):
    config = make_config()
    networks = Networks.from_config(config)
    numbers = sum(torch.Size(shape).numel()
                  for shape in open_weights(tiny_family.chroma_path).shapes.values())  # fmt: skip
    assert networks.total == numbers
    parts = plan_memory(config, networks, Machine(CPU, 10**12)).parts
    assert parts["frozen weights"] + parts["trained weights"] == 4 * numbers
    assert parts["gradients"] == parts["trained weights"] == parts["optimizer"] // 2
    on_gpu = plan_memory(config, networks, Machine(CUDA, 10**12)).parts
    assert on_gpu["frozen weights"] == 2 * (networks.total - networks.trained)
    assert on_gpu["text encoder"] == 2 * networks.text_encoder


@pytest.mark.parametrize("level", ["8bit", "4bit"])
def test_a_quantised_base_takes_less(make_config, level):
    config = make_config(method={"kind": "lora"}, lora={"base_model_quant_level": level})
    networks = Networks.from_config(config)
    whole = plan_memory(make_config(method={"kind": "lora"}), networks, Machine(CUDA, 10**12)).parts[
        "frozen weights"
    ]
    smaller = plan_memory(config, networks, Machine(CUDA, 10**12)).parts["frozen weights"]
    assert smaller < {"8bit": 0.7, "4bit": 0.5}[level] * whole


def test_blocks_recompute_only_where_they_must(make_config):
    config = make_config(training={"train_minibatch": 64})
    networks = Networks.from_config(config)
    roomy = plan_memory(config, networks, Machine(CPU, 10**12))
    tight = plan_memory(config, networks, Machine(CPU, int(roomy.total / HEADROOM * 0.9)))
    assert roomy.choice == (0, 0, 0, False)
    assert tight.choice.blocks + tight.choice.ffn > 0
    assert tight.total < roomy.total


def test_the_changes_make_it_fit_and_says_by_how_much(make_config):
    config = make_config(training={"train_minibatch": 16}, ema={"decay": 0.99})
    networks = Networks.from_config(config)
    least = plan_memory(
        make_config(method={"kind": "lora"}, training={"train_minibatch": 1}),
        networks,
        Machine(CUDA, 10**12),
    )
    capacity = int(least.total / HEADROOM)
    changes, is_enough = advise(config, networks, Machine(CUDA, capacity))
    assert is_enough
    for change in changes:
        config = with_key(config, change.path, change.value)
    after = Networks.from_config(config)
    assert plan_memory(config, after, Machine(CUDA, capacity)).total == changes[-1].bytes
    assert (changes[-1].bytes or 0) <= HEADROOM * capacity
    totals = [change.bytes or 0 for change in changes]
    assert totals == sorted(totals, reverse=True)


def test_a_run_that_does_not_fit_gets_keys_and_values_to_change(found):
    report = found(Target(gpu_gib=0.1), training={"train_minibatch": 16})
    assert not report.can_run
    assert not report.memory.fits
    assert any((change.path, change.value) == ("training.train_minibatch", 1) for change in report.changes)
    assert "set training.train_minibatch to 1: then " in preflight_text(report)


def test_the_checkpoint_is_as_large_as_estimated(make_run):
    from flowloom.engine.__main__ import run_engine

    for name, sections in (("full", {}), ("lora", {"method": {"kind": "lora"}, "lora": {"rank": 4}})):
        run_dir = make_run(
            name, limits={"max_steps": 1}, training={"save_every": 1}, ema={"decay": 0.9}, **sections
        )
        run_engine(run_dir)
        config = run_dir.read_config()
        folder = run_dir.checkpoints()[-1]
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert checkpoint_bytes(config, Networks.from_config(config), CPU) == pytest.approx(size, rel=0.05)


def test_the_rate_of_an_earlier_run_like_this_one_is_used(found, make_run, tmp_path):
    run_dir = make_run("earlier", limits={"max_epochs": 2})
    events = [{"kind": "step", "samples_per_s": rate} for rate in (1.0, 4.0, 4.0, 4.0, 5.0)]
    (run_dir.path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    report = found(limits={"max_steps": None, "max_epochs": 2})
    assert report.time.samples_per_s == 4.0
    assert "earlier" in report.time.source
    assert report.time.total_s == pytest.approx(2 * 22 / 4)
    other = found(training={"train_minibatch": 2})
    assert other.time.source.startswith("estimated")


def test_nothing_is_estimated_for_a_card_that_is_not_here(found):
    assert found(Target(gpu_gib=24)).time.samples_per_s is None
    assert found(Target(gpu_gib=24, samples_per_s=11.0)).time.epoch_s == 2.0


def test_the_verb_prints_text_and_json(make_config, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(make_config().model_dump_json())
    arguments = ["preflight", str(path), "--runs-dir", str(tmp_path)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in ("rows left out", "memory", "optimizer", "disk", "checkpoints", "time", "Ready to train."):
        assert word in text
    assert main([*arguments, "--json", "--model.vae_path", "gone.safetensors"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [problem["where"] for problem in report["problems"]] == ["model.vae_path"]
    assert report["data"]["steps_per_epoch"] == 6


def test_the_checkpoints_that_stay_are_reported_with_their_size(found):
    lora = {"lora": {"rank": 4}, "training": {"save_every": 2}}
    disk = found(**lora, limits={"max_steps": 9}).disk
    assert (disk.kept, disk.parts["checkpoints"]) == (5, 5 * disk.checkpoint)
    assert disk.kept_text.startswith("all 5, ")
    disk = found(**lora, limits={"max_steps": 9}, checkpoint={"keep_last": 2}).disk
    assert (disk.kept, disk.parts["checkpoints"]) == (2, 3 * disk.checkpoint)
    assert disk.kept_text.startswith("2 of 5, ")
    disk = found(**lora, limits={"max_steps": None}).disk
    assert disk.kept is None
    assert "until the run is stopped" in disk.kept_text
