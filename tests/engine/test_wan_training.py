"""Wan trained by the engine on clips: caches, resume, previews, exports, two networks, learning."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from flowloom.cli.main import main
from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection
from flowloom.engine.__main__ import run_engine
from flowloom.engine.clips import Clip
from flowloom.engine.export import export_adapter
from flowloom.engine.fill_cache import fill
from flowloom.import_warnings import quiet_imports
from flowloom.loggers.base import previews as previews_of
from flowloom.models.adapters.read import load_onto
from flowloom.models.families.wan import FAMILY
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.engine.processes import run_all_on_ranks, start_engine
from tests.families import wan
from tests.families.wan import CPU, PROMPTS, Tiny

with quiet_imports():
    from diffusers import WanPipeline

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> Tiny:
    return wan.made(tmp_path_factory.mktemp("wan"), FAMILY)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: Any) -> Path:
    """A folder with three clips and two images, and data.jsonl."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(5):
        frames = np.full((9 if i < 3 else 1, 32, 48, 3), 255, np.uint8)
        for t, frame in enumerate(frames):
            frame[8:24, 2 * t + 4 * i : 2 * t + 4 * i + 12] = (220, 40 * i, 40)
        name, row = (f"{i}.mp4", {"num_frames": 9, "fps": 16}) if i < 3 else (f"{i}.png", {})
        if i < 3:
            Clip(frames, 16.0).save(folder / name, "mp4")
        else:
            Image.fromarray(frames[0]).save(folder / name)
        caption = {"caption_or_tags": f"red, bar, number {i}", "is_tag_based": False}
        size = {"filename": name, "width": 48, "height": 32, "is_url_based": False, "loss_weight": 1.0}
        rows.append(size | caption | row)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def sections(tiny: Tiny, clips: Path) -> dict[str, Any]:
    """A run on the clips."""
    return {
        "model": tiny.section.model_dump() | {"chroma_path": ""},
        "dataloader": {
            "jsonl_metadata_path": str(clips / "data.jsonl"),
            "image_folder_path": str(clips),
            "base_resolution": [48],
            "batch_size": 2,
        },
        "video": {"num_frames": [5], "fps": 16},
        "training": {"lr": 0.02, "train_minibatch": 1},
        "limits": {"max_steps": 3},
    }


def losses(run_dir: RunDir) -> list[float]:
    return [event["loss"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def by_step(run_dir: RunDir) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(run_dir.events_jsonl) if "loss" in event}


def tensors(run_dir: RunDir) -> dict[str, torch.Tensor]:
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    files = sorted(checkpoint.glob("*.safetensors"))
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in open_weights(file).items()}


def test_a_resumed_run_and_a_cached_run_equal_an_uninterrupted_one(
    tiny: Tiny, make_run: Callable[..., RunDir], sections: dict[str, Any], tmp_path: Path
):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny.section.path, folder)
    section = resolve_paths(ModelSection(path=str(folder)), Path())
    sections["model"] = section.model_dump() | {"chroma_path": ""}
    data = {"uncond_percentage": 0.0, "tag_drop_percentage": 0.0, "shuffle_tags": False}
    sections["dataloader"] |= data
    make = partial(make_run, **sections, lora=LORA)
    cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache"), "dtype": "fp32"}
    whole, parts, filled = make("whole"), make("parts"), make("filled", cache=cache)
    for end in (2, 3):
        change_by_flags(parts, [("limits.max_steps", str(end))])
        run_engine(parts)
    for run_dir in (whole, filled):
        run_engine(run_dir)
    assert losses(whole) == losses(parts) == losses(filled)
    assert len(losses(whole)) == 3
    expected = tensors(whole)
    for run_dir in (parts, filled):
        found = tensors(run_dir)
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    # The cache replaces the encoders.
    for part in ("vae", "text_encoder"):
        shutil.rmtree(folder / part)
    cached = make("cached", cache=cache)
    run_engine(cached)
    assert losses(cached) == losses(whole)


def test_a_run_previews_clips_and_its_lora_does_the_same_in_diffusers(
    tiny: Tiny, sections: dict[str, Any], make_run: Callable[..., Any], tmp_path: Path
):
    previews = {"inference_every": 3, "steps": 2, "prompts": PROMPTS, "image_dim": [48, 32]}
    run_dir = make_run(
        **sections,
        lora=LORA,
        inference=previews,
        extra_inference_config=[previews | {"num_frames": 1}],
        preview={"batch_caption": False},
        validation={"share": 0.2},
    )
    run_engine(run_dir)
    folder = run_dir.samples_dir(3)
    records = json.loads((folder / "samples.json").read_text())
    assert [record["file"] for record in records] == ["00.mp4", "01.mp4", "02.png", "03.png"]
    assert (records[0]["num_frames"], records[0]["fps"], records[0]["poster"]) == (5, 16.0, "00.poster.png")
    assert "num_frames" not in records[2]
    # Trackers get the poster of a clip, under the clip's name and prompt.
    shown = [*previews_of(run_dir.path, {"kind": "sampled", "dir": "samples/step_00000003"})]
    assert [(name, path.name) for name, path, _ in shown[:2]] == [
        ("samples/00", "00.poster.png"),
        ("samples/01", "01.poster.png"),
    ]
    assert [prompt for _, _, prompt in shown] == PROMPTS * 2
    with av.open(str(folder / "00.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert (len(frames), stream.average_rate, stream.codec_context.name) == (5, 16, "h264")
    poster = np.asarray(Image.open(folder / "00.poster.png"))
    assert np.abs(frames[0].astype(int) - poster).mean() < 12
    size = ["--size", "64x32", "--steps", "1", "--frames", "9", "--out-dir", str(tmp_path / "out")]
    assert main(["sample", str(run_dir.path), "--prompt", "one", *size]) == 0
    (record,) = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["file"], record["num_frames"], record["fps"]) == ("00.mp4", 9, 16.0)
    assert (tmp_path / "out" / "00.poster.png").is_file()
    grid, level, texts = tiny.grid(), torch.tensor([0.3, 0.8]), tiny.texts()
    x = torch.randn(2, math.prod(grid) // 4, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        base = FAMILY.predict(tiny.network(), x, level, texts, grid)
    for form in ("comfy", "kohya", "diffusers"):
        path = tmp_path / f"{form}.safetensors"
        export_adapter(run_dir.path, form, path)
        ours = tiny.network()
        load_onto(ours, path, 1.0)
        theirs: Any = WanPipeline.from_pretrained(tiny.section.path)
        theirs.load_lora_weights(str(path))
        loaded = [name for name, _ in theirs.transformer.named_parameters() if "lora_A" in name]
        assert len(loaded) == 2 * 10
        assert theirs.transformer.blocks[0].attn1.to_q.scaling["default_0"] == 1.0
        with torch.no_grad():
            found, expected = (FAMILY.predict(n, x, level, texts, grid) for n in (theirs.transformer, ours))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert (found - base).abs().max() > 1e-3


@pytest.mark.parametrize("expert", ["auto", "high_noise", "low_noise"])
def test_each_of_two_networks_is_trained_at_its_own_noise_levels(
    make_run: Callable[..., Any], sections: dict[str, Any], tmp_path: Path, expert: str
):
    two = wan.made(tmp_path / "two", FAMILY, boundary_ratio=0.7)
    is_low = expert == "low_noise"
    chosen = two.section.model_copy(update={"expert": expert})
    assert FAMILY.noise_levels(chosen) == ((0.0, 0.7) if is_low else (0.7, 1.0))
    theirs = two.pipeline.transformer_2 if is_low else two.pipeline.transformer
    ours: Any = FAMILY.load_network(chosen.network_path, CPU, torch.float32)
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in theirs.state_dict().items())
    assert ours.flow_shift == 3.0
    sections["model"] = chosen.model_dump() | {"chroma_path": ""}
    run_dir = make_run(**sections, lora=LORA)
    run_engine(run_dir)
    events = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]
    bins = [i for event in events for i, loss in enumerate(event["loss_by_noise_level"]) if loss is not None]
    assert bins
    assert all(i <= 5 if is_low else i >= 5 for i in bins)
    export_adapter(run_dir.path, "diffusers", tmp_path / "lora.safetensors")
    two.pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"), load_into_transformer_2=is_low)
    adapted = [name for name, _ in theirs.named_parameters() if "lora_A" in name]
    assert len(adapted) == 2 * 10


@pytest.mark.slow
def test_a_cached_killed_and_resumed_run_on_two_ranks_equals_one_and_loads_in_diffusers(
    tiny: Tiny, sections: dict[str, Any], make_run: Callable[..., RunDir], tmp_path: Path
):
    """Cache, train, preview, kill, resume, export: the whole way of a user, in separate processes."""
    sections["dataloader"] |= {"uncond_percentage": 0.0, "shuffle_tags": False}
    sections["training"] |= {"save_every": 2}
    sections |= {
        "limits": {"max_steps": 6},
        "lora": LORA,
        "inference": {"inference_every": 6, "steps": 1, "prompts": ["one"], "image_dim": [48, 32]},
        "preview": {"batch_caption": False, "clip_format": "webm"},
    }
    cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache"), "dtype": "fp32"}
    plain, killed = make_run("plain", **sections), make_run("killed", **sections, cache=cache)
    ranks = make_run("ranks", **sections, cache=cache, memory={"streamed_blocks": 1})
    sharded = make_run("sharded", **sections, cache=cache, parallel={"strategy": "fsdp"})
    run_engine(plain)
    assert fill(killed.read_config()).images == 5
    process = start_engine(killed)
    while not killed.latest_checkpoint():
        assert process.poll() is None, process.output()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL)
    assert start_engine(killed).wait() == 0
    assert run_all_on_ranks([ranks, sharded], 2) == 0
    for run_dir, tolerance in ((killed, 0), (ranks, 1e-4), (sharded, 1e-4)):
        assert by_step(run_dir) == pytest.approx(by_step(plain), rel=tolerance)
        (folder,) = run_dir.path.glob("samples/step_*")
        assert sorted(path.name for path in folder.iterdir()) == ["00.poster.png", "00.webm", "samples.json"]
    export_adapter(killed.path, "diffusers", tmp_path / "lora.safetensors")
    theirs: Any = WanPipeline.from_pretrained(tiny.section.path)
    theirs.load_lora_weights(str(tmp_path / "lora.safetensors"))
    assert len([name for name, _ in theirs.transformer.named_parameters() if "lora_A" in name]) == 2 * 10


METHODS: dict[str, dict[str, Any]] = {
    "full": {
        "training": {"lr": 1e-3},
        "optimizer": {"kind": "adamw", "device": "cpu"},
        "memory": {"streamed_blocks": 1},
    },
    "dora": {"lora": LORA, "method": {"kind": "dora"}, "memory": {"streamed_blocks": 1}},
    "lokr-8bit": {"lora": LORA | {"base_model_quant_level": "8bit"}, "method": {"kind": "lokr"}},
    "bf16": {"lora": LORA | {"target_layers": ["self_attn.q"]}, "parallel": {"dtype": "bf16"}},
    "rotation": {"training": {"change_layer_every": 1, "trained_double_blocks": 1}},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit(
    make_run: Callable[..., RunDir], sections: dict[str, Any], method: str
):
    given = METHODS[method]
    sections["training"] |= given.get("training", {})
    make = partial(make_run, **{**given, **sections})
    whole, parts = make("whole"), make("parts")
    run_engine(whole)
    for end in (1, 3):
        change_by_flags(parts, [("limits.max_steps", str(end))])
        run_engine(parts)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 3
    expected, found = (tensors(run_dir) for run_dir in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.slow
def test_diffusers_generates_the_clip_that_was_learned(
    tmp_path: Path, make_run: Callable[..., RunDir], sections: dict[str, Any]
):
    """The training loss does not show a wrong sign, time direction or order of frames."""
    folder = tmp_path / "pipeline"
    folder.mkdir()
    pipeline: Any = wan.save(folder)
    with torch.no_grad():
        # Latents of a random autoencoder hardly vary: everything would be learned by predicting their mean.
        pipeline.vae.encoder.conv_out.weight.mul_(20)
    pipeline.save_pretrained(folder)
    frames = np.random.default_rng(1).integers(0, 255, (5, 4, 8, 3), np.uint8)
    frames = np.stack([np.asarray(Image.fromarray(each).resize((64, 32))) for each in frames])
    Clip(frames, 16.0).save(tmp_path / "one.mp4", "mp4")
    row = {
        "filename": "one.mp4",
        "caption_or_tags": "one",
        "width": 64,
        "height": 32,
        "num_frames": 5,
        "fps": 16,
    }
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    data = {"jsonl_metadata_path": str(tmp_path / "data.jsonl"), "image_folder_path": str(tmp_path)}
    data |= {"uncond_percentage": 0.0, "batch_size": 4, "base_resolution": [48], "resolution_step": 16}
    section = resolve_paths(ModelSection(path=str(folder)), Path())
    run_dir = make_run(
        model=section.model_dump() | {"chroma_path": ""},
        dataloader=data,
        video={"num_frames": [5], "fps": 16},
        training={"lr": 4e-3, "warmup_steps": 10, "weight_decay": 0.0, "train_minibatch": 4},
        limits={"max_steps": 300},
        lr_schedule={"kind": "cosine"},
        objective={"noise_level": {"kind": "uniform"}, "lowercase_percentage": 0.0},
        cache={"latents": "memory", "text": "memory"},
    )
    run_engine(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    (weights,) = (path for path in checkpoint.glob("*.safetensors") if "optimizer" not in path.name)
    pipeline.transformer.load_state_dict(dict(FAMILY.open_weights(weights)))
    codec = FAMILY.load_codec(section, CPU, torch.float32)
    with av.open(str(tmp_path / "one.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    wanted = codec.encode(torch.from_numpy(np.stack(shown))[None].movedim(-1, 1) / 127.5 - 1)
    assert wanted.shape == (1, 16, 2, 4, 8)
    output = pipeline(
        "one",
        height=32,
        width=64,
        num_frames=5,
        num_inference_steps=8,
        guidance_scale=1.0,
        output_type="latent",
        latents=torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)),
    )
    assert (output.frames - wanted).square().mean() < 0.4 * wanted.var()
