"""A run is a directory: the files it writes, the requests it follows, and the state after a failure."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowloom.datasets.load import load_dataset
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.estimate.plan import steps_per_epoch
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import DataError, DivergedError, FlowloomError, OutOfMemoryError
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from tests.engine.processes import start_engine
from tests.fakes.hub import Hub

INFERENCE = {"inference_every": 3, "steps": 2, "prompts": ["red", "blue"], "image_dim": [64, 48], "cfg": 3.0}


def kinds(run_dir: RunDir) -> Counter[str]:
    return Counter(event["kind"] for event in read_events(run_dir.events_jsonl))


def events(run_dir: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == kind]


def test_a_run_leaves_events_previews_and_a_checkpoint(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(
        training={"save_every": 3},
        inference=INFERENCE,
        extra_inference_config=[
            INFERENCE | {"inference_every": 6, "prompts": ["green"], "first_n_steps_wo_cfg": 1}
        ],
        validation={"share": 0.25, "every": 3},
        ema={"decay": 0.9},
    )
    run_engine(run_dir)
    counts = kinds(run_dir)
    assert (counts["started"], counts["step"], counts["saved"], counts["sampled"], counts["finished"]) == (
        1,
        6,
        2,
        2,
        1,
    )
    step = events(run_dir, "step")[-1]
    assert step["step"] == 6
    assert step["lr"] == pytest.approx(1e-3)
    assert step["samples_per_s"] > 0
    assert step["eta_s"] == pytest.approx(0, abs=1e-6)
    assert len(step["loss_by_noise_level"]) == 8
    samples = json.loads((run_dir.samples_dir(6) / "samples.json").read_text())
    assert [s["prompt"] for s in samples][:2] == ["red", "blue"]
    assert len(samples) == 3 + 2, "two prompts and one, each with the batch's caption"
    for sample in samples:
        with Image.open(run_dir.samples_dir(6) / sample["file"]) as image:
            assert image.size == (64, 48)
    measured = events(run_dir, "validated")
    assert [(e["step"], e["weights"]) for e in measured] == [(3, "raw"), (3, "ema"), (6, "raw"), (6, "ema")]
    assert set(measured[0]["by_quantile"]) == {"0.1", "0.3", "0.5", "0.7", "0.9"}
    assert measured[2]["loss"] < measured[0]["loss"] * 1.5


def test_prompts_are_cut_at_their_own_section_s_length(make_run: Callable[..., RunDir]) -> None:
    """Text beyond it changes nothing; text within it counts, wherever training cuts its captions."""
    words = "red blue green red blue green red blue"
    images: dict[tuple[int, str], bytes] = {}
    for length in (4, 64):
        run_dir = make_run(
            f"length_{length}",
            model={"t5_max_length": 16},
            inference=INFERENCE
            | {"prompts": [f"{words} {end}" for end in ("heart", "bar")], "t5_max_length": length},
            preview={"batch_caption": False},
            limits={"max_steps": 3},
        )
        run_engine(run_dir)
        for place in ("00", "01"):
            images[length, place] = (run_dir.samples_dir(3) / f"{place}.png").read_bytes()
    config = run_dir.read_config()
    encoders = build(config, Ranks()).encoders
    one, other = (f"{words} {end}" for end in ("heart", "bar"))
    short, long = (encoders.prompts([one, other], length) for length in (4, 64))
    assert [len(text["states"]) for text in short] == [4, 4]
    assert torch.equal(short[0]["states"], short[1]["states"])
    assert len(long[0]["states"]) == min(encoders.text_encoder.count_tokens([one])[0] + 1, 64) > 16
    assert images[4, "00"] != images[64, "00"]


def test_held_out_rows_are_never_trained(make_config: Callable[..., Any]) -> None:
    parts = build(make_config(validation={"share": 0.3}), Ranks())
    assert parts.validation is not None
    trained = {s.row for batch in parts.loader.batches(0) for s in batch.samples}
    held_out = {s.row for batch in parts.validation.batches(0) for s in batch.samples}
    assert trained
    assert held_out
    assert not trained & held_out


def test_the_loss_falls(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(
        training={"train_minibatch": 16, "lr": 3e-3},
        dataloader={"batch_size": 16},
        cache={"latents": "memory", "text": "memory"},
        limits={"max_steps": 60},
    )
    run_engine(run_dir)
    losses = [event["loss"] for event in events(run_dir, "step")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_every_row_is_trained_once_an_epoch(make_run: Callable[..., RunDir]) -> None:
    """22 rows in two buckets by batches of 4: the short last batches are trained as well."""
    run_dir = make_run(limits={"max_steps": None, "max_epochs": 2})
    run_engine(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    position = json.loads((checkpoint / "state" / "trainer.json").read_text())
    assert position["samples"] == 44
    assert (position["epoch"], position["batch"]) == (2, 0)


def test_retention_keeps_the_last_and_every_mth(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(
        training={"save_every": 1}, checkpoint={"keep_last": 2, "keep_every": 3}, limits={"max_steps": 8}
    )
    run_engine(run_dir)
    assert [folder.name[-1] for folder in run_dir.checkpoints()] == ["3", "6", "7", "8"]


def test_controls_act_at_the_next_step(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(inference=INFERENCE | {"inference_every": 1000}, limits={"max_steps": 50})

    def control(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            run_dir.request("checkpoint")
            run_dir.request("sample")
        if event["kind"] == "step" and event["step"] == 5:
            run_dir.request("stop")

    run_engine(run_dir, control)
    assert [event["step"] for event in events(run_dir, "sampled")] == [2]
    assert [event["step"] for event in events(run_dir, "saved")] == [2, 5]
    assert kinds(run_dir)["stopped"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_zero(make_run: Callable[..., RunDir], number: signal.Signals) -> None:
    run_dir = make_run(limits={"max_steps": 10_000})
    process = start_engine(run_dir)
    while not (run_dir.events_jsonl.exists() and kinds(run_dir)["step"] > 3):
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == 0
    last = list(read_events(run_dir.events_jsonl))[-1]
    assert last["kind"] == "stopped"
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(last["step"])


def test_a_loss_that_is_not_a_number_ends_the_run(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(training={"lr": 1e30, "save_every": 1, "warmup_steps": 0}, limits={"max_steps": 50})
    with pytest.raises(DivergedError, match=r"lower training\.lr"):
        run_engine(run_dir)
    failed = events(run_dir, "failed")[0]
    assert failed["error"] == "DivergedError"
    assert "resume" in failed["hint"]
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    assert events(run_dir, "saved")[-1]["dir"].endswith(checkpoint.name)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_complete(make_run: Callable[..., RunDir]) -> None:
    """Writing past the process's file size limit fails as a full disk does; the engine runs in a child."""
    run_dir = make_run(training={"save_every": 1}, limits={"max_steps": 3})
    run_engine(run_dir)
    whole = sorted((p, p.stat().st_size) for p in run_dir.path.rglob("checkpoints/**/*") if p.is_file())
    config = run_dir.read_config()
    more = config.model_copy(update={"limits": config.limits.model_copy(update={"max_steps": 6})})
    run_dir.write_run(more, "a test")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, "-m", "flowloom.engine", str(run_dir.path)]
    process = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 2, process.stderr
    failed = events(run_dir, "failed")[0]
    assert failed["error"] == "DiskFullError"
    assert "disk" in failed["message"]
    assert sorted((p, p.stat().st_size) for p, _ in whole) == whole
    assert not list(run_dir.path.rglob("*.tmp"))


def test_running_out_of_memory_gives_hints(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(limits={"max_steps": 3})

    def hog(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(OutOfMemoryError, match="train_minibatch"):
        run_engine(run_dir, hog)
    assert events(run_dir, "failed")[0]["error"] == "OutOfMemoryError"


def test_too_many_broken_images_stop_the_run_with_a_list(
    make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    rows = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (64, 64), "red").save(path)
        if i < 4:
            path.write_bytes(path.read_bytes()[:60])
        rows.append({"filename": f"{i}.png", "caption_or_tags": "red", "width": 64, "height": 64})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"jsonl_metadata_path": str(tmp_path / "data.jsonl"), "image_folder_path": str(tmp_path)}
    run_dir = make_run(dataloader=data, limits={"skipped_percentage": 0.2})
    with pytest.raises(DataError, match=r"data\.jsonl:\d"):
        run_engine(run_dir)
    tolerant = make_run("tolerant", dataloader=data, limits={"skipped_percentage": 0.5, "max_steps": 6})
    run_engine(tolerant)
    assert {event["line"] for event in events(tolerant, "skipped")} == {1, 2, 3, 4}
    assert kinds(tolerant)["skipped"] == 4, "each is reported once"


def test_a_second_engine_on_the_same_run_is_refused(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run()
    with run_dir.locked(), pytest.raises(FlowloomError, match="run"):
        run_engine(run_dir)


def test_a_checkpoint_says_how_it_was_made(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(lora={"rank": 2, "alpha": 6}, limits={"max_steps": 2})
    run_engine(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    weights = open_weights(checkpoint / "adapter.safetensors")
    assert json.loads(weights.metadata["flowloom.config"])["lora"]["rank"] == 2
    assert json.loads(weights.metadata["flowloom.dataset"])
    assert "torch" in json.loads(weights.metadata["flowloom.versions"])
    names = set(weights)
    assert "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight" in names
    assert weights["diffusion_model.double_blocks.0.img_attn.qkv.alpha"].item() == 6


def test_profiling_writes_a_trace_of_a_few_steps(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(training={"do_profiling": True}, limits={"max_steps": 6})
    run_engine(run_dir)
    trace = json.loads((run_dir.path / "trace.json").read_text())
    names = Counter(event["name"] for event in trace["traceEvents"])
    assert [name for name in sorted(names) if name.startswith("ProfilerStep#")] == [
        "ProfilerStep#1",
        "ProfilerStep#2",
        "ProfilerStep#3",
    ]
    assert names["aten::addmm"] > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_train_alike(make_run: Callable[..., RunDir]) -> None:
    losses = []
    for name in ("plain", "compiled"):
        run_dir = make_run(name, memory={"compile": name == "compiled"}, limits={"max_steps": 4})
        run_engine(run_dir)
        losses.append([event["loss"] for event in events(run_dir, "step")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_checkpoints_go_to_the_hub(
    make_run: Callable[..., RunDir], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, repo = {"save_every": 2}, {"repo_id": "me/model"}
    run_dir = make_run(training=training, hub=repo, lora={"rank": 2, "alpha": 2}, limits={"max_steps": 4})
    run_engine(run_dir)
    assert [event["step"] for event in events(run_dir, "uploaded")] == [2, 4]
    sent = {path for path in hub.files if path.endswith("adapter.safetensors")}
    assert len(sent) == 2
    latest = run_dir.latest_checkpoint()
    assert latest is not None
    assert (latest / "adapter.safetensors").read_bytes() in [hub.files[path] for path in sent]


def test_short_batches_of_several_buckets_share_an_update(make_run: Callable[..., RunDir]) -> None:
    counts = {}
    for packs in (False, True):
        run_dir = make_run(
            f"packs-{packs}",
            batching={"pack_aspect_ratios": packs},
            dataloader={"batch_size": 32},
            limits={"max_steps": None, "max_epochs": 1},
        )
        run_engine(run_dir)
        steps = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]
        counts[packs] = len(steps)
        config = run_dir.read_config()
        assert len(steps) == steps_per_epoch(config, load_dataset(config))
        assert {event["epoch"] for event in steps} == {0}
    assert counts[True] < counts[False]
