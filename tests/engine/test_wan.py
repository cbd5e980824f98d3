"""Wan at tiny random sizes against diffusers' WanPipeline: network, gradients, clip, LoRA, text."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowloom.config.run import InferenceSection, ModelSection, RunConfig
from flowloom.data.dataset import clip_rules
from flowloom.engine.build import load_encoders
from flowloom.engine.clips import Clip
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.memory import sample_tokens
from flowloom.engine.preview import SampleGenerator, SamplingParams, clip_size
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.errors import ConfigError
from flowloom.import_warnings import quiet_imports
from flowloom.models.families.wan import FAMILY
from flowloom.models.families.wan_ti2v import FAMILY as TI2V
from flowloom.models.family import detect, family_for, family_of
from flowloom.models.recognize import recognize
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.recompute import Recompute
from flowloom.trainers.engine import PRESETS
from tests.engine.test_memory_plan import write_hole
from tests.families import wan
from tests.families.wan import CPU, FRAMES, HEIGHT, PROMPTS, WIDTH, Tiny

with quiet_imports():
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

STEPS = 3
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> Tiny:
    return wan.made(tmp_path_factory.mktemp("wan"), FAMILY)


@pytest.fixture(scope="module", params=["2.1", "2.2 TI2V"])
def each(request: Any, tiny: Tiny, tmp_path_factory: Any) -> Tiny:
    if request.param == "2.1":
        return tiny
    return wan.made(tmp_path_factory.mktemp("ti2v"), TI2V, expand_timesteps=True)


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


LARGE = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48}
RELEASED: dict[int, tuple[dict[str, Any], int, int]] = {
    12: ({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 480, 81),
    16: (LARGE, 704, 121),
    24: (LARGE, 960, 121),
}
"""By the memory of a card: Wan 2.1's 1.3B or Wan 2.2's 5B, a side and a number of frames that it trains."""


@pytest.mark.parametrize("size", RELEASED)
def test_the_lora_preset_of_a_card_fits_clips_of_the_released_networks(tmp_path: Path, size: int):
    sizes, side, frames = RELEASED[size]
    with torch.device("meta"):
        path = write_hole(tmp_path / "wan.safetensors", WanTransformer3DModel(**sizes))
    given = next(preset for preset in PRESETS if preset.name == f"lora-{size}gb").config
    lora = given["lora"] | {"base_model_quant_level": "8bit"}
    sections = given | {"model": {"path": str(path)}, "lora": lora, "dataloader": {"base_resolution": [side]}}
    networks = Networks.from_config(RunConfig.model_validate(sections))
    plans = []
    for num_frames in (1, frames):
        config = RunConfig.model_validate(sections | {"video": {"num_frames": [num_frames]}})
        planes = (num_frames - 1) // 4 + 1
        patch = 32 if sizes is LARGE else 16
        assert sample_tokens(config) == (planes * (side // patch) ** 2, 512)
        plans.append(plan_memory(config, networks, Machine(torch.device("cuda"), size * 2**30, 96 * 2**30)))
        assert plans[-1].fits, plans[-1].parts
    assert plans[1].choice.blocks >= plans[0].choice.blocks


def test_a_single_file_of_two_networks_is_known_by_its_name():
    names = {
        "wan2.2_t2v_high_noise_14B_fp16.safetensors": (0.875, 1.0),
        "high_noise_model/diffusion_pytorch_model.safetensors": (0.875, 1.0),
        "wan2.2_t2v_low_noise_14B_fp16.safetensors": (0.0, 0.875),
        "wan2.1_t2v_14B_bf16.safetensors": (0.0, 1.0),
    }
    for name, levels in names.items():
        assert FAMILY.noise_levels(ModelSection(path=f"/models/{name}")) == levels


def test_frames_and_sides_that_the_autoencoder_does_not_take_are_refused(each: Tiny):
    def config(**sections: Any) -> RunConfig:
        return RunConfig.model_validate({"model": each.section.model_dump(), **sections})

    is_large = each.family is TI2V
    narrow = config(dataloader={"base_resolution": [64], "resolution_step": 16})
    with pytest.raises(ConfigError, match="multiples of 32") if is_large else nullcontext():
        clip_rules(narrow)
    with pytest.raises(ConfigError, match=r"4n \+ 1 frames. Set it to 81 or 85"):
        clip_rules(config(video={"num_frames": [82]}))
    with pytest.raises(ConfigError, match=r"4n \+ 1 frames. Set it to 5 or 9"):
        clip_size(InferenceSection(num_frames=6), config())
    usual = (121, 24.0) if is_large else (81, 16.0)
    assert clip_size(InferenceSection(), config()) == usual
    assert clip_size(InferenceSection(fps=8), config(video={"num_frames": [5, 9]})) == (9, 8.0)
