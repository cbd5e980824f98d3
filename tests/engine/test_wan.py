"""Wan at tiny random sizes against diffusers' WanPipeline: network, gradients, clip, LoRA, training."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import load_encoders
from flowloom.engine.clips import Clip
from flowloom.engine.export import export_adapter
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.import_warnings import quiet_imports
from flowloom.models.adapters.read import load_onto
from flowloom.models.families.wan import FAMILY
from flowloom.models.families.wan_ti2v import FAMILY as TI2V
from flowloom.models.family import detect, family_for, family_of
from flowloom.models.recognize import recognize
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.recompute import Recompute
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.families import wan

with quiet_imports():
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

CPU = torch.device("cpu")
PROMPTS = ["a red bar on  white &amp; blue, number 1", "blue bar"]
WIDTH, HEIGHT, FRAMES, STEPS = 64, 32, 5, 3
LORA = {"rank": 4, "alpha": 8}


class Tiny(NamedTuple):
    """diffusers' pipeline, its family here, and the model section that names nothing but its folder."""

    pipeline: Any
    family: Any
    section: ModelSection

    def network(self, dtype: torch.dtype = torch.float32) -> Any:
        return self.family.load_network(self.section.network_path, CPU, dtype)

    def grid(self, frames: int = FRAMES) -> tuple[int, int, int]:
        return (frames - 1) // 4 + 1, HEIGHT // self.family.factor, WIDTH // self.family.factor

    def texts(self) -> list[dict[str, Tensor]]:
        conditioner = self.family.load_conditioner(self.section, CPU, torch.float32)
        return conditioner.encode(PROMPTS, self.section.max_text_tokens)


def made(folder: Path, family: Any, **options: Any) -> Tiny:
    pipeline = wan.save(folder, **options)
    return Tiny(pipeline, family, resolve_paths(ModelSection(path=str(folder)), Path()))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> Tiny:
    return made(tmp_path_factory.mktemp("wan"), FAMILY)


@pytest.fixture(scope="module", params=["2.1", "2.2 TI2V"])
def each(request: Any, tiny: Tiny, tmp_path_factory: Any) -> Tiny:
    if request.param == "2.1":
        return tiny
    return made(tmp_path_factory.mktemp("ti2v"), TI2V, expand_timesteps=True)


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


def test_a_diffusers_folder_is_recognized_with_all_its_files(each: Tiny):
    assert detect(Path(each.section.path)) is family_for(each.section) is each.family
    assert all(getattr(each.section, file.key) for file in each.family.files)
    assert family_of(each.network()) is each.family


def their_states(pipeline: WanPipeline) -> Tensor:
    with torch.no_grad():
        states, _ = pipeline.encode_prompt(PROMPTS, None, False, max_sequence_length=512)
    return states


@pytest.mark.parametrize("recomputed", [(0, 0), (2, 0), (0, 2), (1, 1)])
def test_prediction_and_gradients_are_the_pipelines(each: Tiny, recomputed: tuple[int, int]):
    theirs, ours, family, grid = each.pipeline.transformer, each.network(), each.family, each.grid()
    family.recompute(ours, Recompute(*recomputed))
    planes = theirs.config.in_channels
    x = torch.randn(2, planes, *grid, generator=torch.Generator().manual_seed(3))
    level = torch.tensor([0.2, 0.9])
    # The pipeline of TI2V repeats the time for every token.
    time = level * 1000 if planes == 16 else (level * 1000)[:, None].expand(2, math.prod(grid) // 4)
    expected = theirs(x, time, their_states(each.pipeline), return_dict=False)[0]
    found = family.unpack(family.predict(ours, family.pack(x), level, each.texts(), grid), grid)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for network, output in ((theirs, expected), (ours, found)):
        network.zero_grad()
        output.square().mean().backward()
    gradients = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-4, atol=1e-6)


def test_modulations_stay_in_float32(tiny: Tiny):
    network = tiny.network(torch.bfloat16)
    wide = {name for name, weight in network.named_parameters() if weight.dtype == torch.float32}
    theirs = WanPipeline.from_pretrained(tiny.section.path, dtype=torch.bfloat16).transformer
    assert wide == {name for name, weight in theirs.named_parameters() if weight.dtype == torch.float32}
    # Also while the rest computes in bfloat16.
    timestep = torch.randn(1, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.condition_embedder.time_embedder(timestep).dtype == torch.float32


def sample_clip(tiny: Tiny, frames: int) -> Any:
    encoders = load_encoders(tiny.section, RunConfig(model=tiny.section), CPU)
    sampled = SampleGenerator(tiny.network(), encoders, Precision(CPU, torch.float32, torch.float32))
    params = SamplingParams(WIDTH, HEIGHT, STEPS, cfg=2.0, num_frames=frames, fps=16.0)
    return sampled.generate(PROMPTS[:1], [7], params)[0]


def test_a_clip_is_the_pipelines(each: Tiny):
    levels = each.family.schedule(each.network(), STEPS, 0)
    # The release's own scheduler visits the same levels, but for its start at 0.999 instead of 1.
    theirs: Any = each.pipeline.scheduler
    theirs.set_timesteps(STEPS)
    assert [float(level) for level in theirs.sigmas] == pytest.approx(levels, abs=2e-3)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps = lambda _steps, device: type(scheduler).set_timesteps(
        scheduler, sigmas=levels[:-1], device=device
    )
    euler: Any = WanPipeline(**{**each.pipeline.components, "scheduler": scheduler})
    euler.register_to_config(expand_timesteps=each.pipeline.config.expand_timesteps)
    euler.set_progress_bar_config(disable=True)
    size = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS, "guidance_scale": 2.0}
    for frames in (FRAMES, 1):
        grid, width = each.grid(frames), 4 * each.pipeline.transformer.config.in_channels
        noise = torch.randn(math.prod(grid) // 4, width, generator=generator(7, "picture"))[None]
        output = euler(PROMPTS[0], num_frames=frames, latents=each.family.unpack(noise, grid), **size)
        found = sample_clip(each, frames)
        pixels = found.frames if isinstance(found, Clip) else np.asarray(found)[None]
        assert pixels.shape == (frames, HEIGHT, WIDTH, 3)
        assert np.abs(pixels - output.frames[0] * 255).max() < 0.51


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under Wan's names, as diffusers' converter reads them."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in (
            ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
            ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
            ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
            ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
            ("condition_embedder.time_proj", "time_projection.1"),
            ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
            ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
            ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
            ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
            ("attn1", "self_attn"),
            ("attn2", "cross_attn"),
            ("to_out.0", "o"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("add_k_proj", "k_img"),
            ("add_v_proj", "v_img"),
            ("norm_added_k", "norm_k_img"),
            ("ffn.net.0.proj", "ffn.0"),
            ("ffn.net.2", "ffn.2"),
            (".norm2.", ".norm3."),
            ("proj_out", "head.head"),
        ):
            name = name.replace(theirs, ours)
        if name == "scale_shift_table":
            name = "head.modulation"
        renamed[name.replace("scale_shift_table", "modulation")] = tensor
    return renamed


SIZES: dict[str, dict[str, Any]] = {
    "wan": {},
    "wan-ti2v": {"in_channels": 48, "out_channels": 48},
    "wan-i2v": {"image_dim": 8, "added_kv_proj_dim": 72, "in_channels": 36},
}


@pytest.mark.parametrize("kind", SIZES)
def test_a_single_file_is_converted_as_by_diffusers(tmp_path: Path, kind: str):
    model = wan.make_transformer(**SIZES[kind])
    released = released_names(dict(model.state_dict()))
    expected = convert_wan_transformer_to_diffusers(dict(released))
    assert expected.keys() == model.state_dict().keys()
    for prefix in ("", "model.diffusion_model."):
        path = tmp_path / "wan.safetensors"
        save_weights(path, {f"{prefix}{name}": tensor for name, tensor in released.items()}, {})
        assert [each.architecture for each in recognize(open_weights(path).shapes)] == [kind]
        assert kind == "wan-i2v" or detect(path).name == kind
        found = FAMILY.open_weights(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    given = model.config["image_dim"], model.config["added_kv_proj_dim"], model.config["in_channels"]
    read: Any = FAMILY.sizes(path)
    assert (read.image_dim, read.added_kv_proj_dim, read.input_channels) == given


def test_operations_are_counted_as_torch_counts_them(tiny: Tiny):
    meta, grid = torch.device("meta"), (3, 16, 24)
    network = FAMILY.load_network(tiny.section.network_path, meta, torch.float32)
    num_tokens = math.prod(grid) // 4
    with torch.device(meta), FlopCounterMode(display=False) as counter, torch.no_grad():
        texts = [{"states": torch.zeros(512, wan.TEXT_WIDTH)}]
        FAMILY.predict(network, torch.zeros(1, num_tokens, 64), torch.ones(1), texts, grid)
    formula = FAMILY.flops(FAMILY.sizes(tiny.section.network_path), num_tokens, 512)
    assert formula.forward == pytest.approx(counter.get_total_flops(), rel=0.01)


def losses(run_dir: RunDir) -> list[float]:
    return [event["loss"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def test_a_resumed_run_and_a_cached_run_equal_an_uninterrupted_one(
    make_run: Callable[..., RunDir], sections: dict[str, Any], tmp_path: Path
):
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
    checkpoints = [run_dir.latest_checkpoint() for run_dir in (whole, parts, filled)]
    expected, *others = [
        open_weights(next(path.glob("adapter*.safetensors"))) for path in checkpoints if path
    ]
    for found in others:
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    # The cache replaces the encoders.
    folder = tmp_path / "pipeline"
    shutil.copytree(sections["model"]["path"], folder)
    cached = make("cached", cache=cache, limits={"max_steps": 3})
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
    with av.open(str(folder / "00.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert (len(frames), stream.average_rate, stream.codec_context.name) == (5, 16, "h264")
    poster = np.asarray(Image.open(folder / "00.poster.png"))
    assert np.abs(frames[0].astype(int) - poster).mean() < 12
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
    two = made(tmp_path / "two", FAMILY, boundary_ratio=0.7)
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


def test_a_single_file_of_two_networks_is_known_by_its_name():
    names = {
        "wan2.2_t2v_high_noise_14B_fp16.safetensors": (0.875, 1.0),
        "high_noise_model/diffusion_pytorch_model.safetensors": (0.875, 1.0),
        "wan2.2_t2v_low_noise_14B_fp16.safetensors": (0.0, 0.875),
        "wan2.1_t2v_14B_bf16.safetensors": (0.0, 1.0),
    }
    for name, levels in names.items():
        assert FAMILY.noise_levels(ModelSection(path=f"/models/{name}")) == levels


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
