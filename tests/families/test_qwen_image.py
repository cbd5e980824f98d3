"""Qwen-Image beyond the contract of all families: files, guidance, layers that nothing reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.engine.build import load_encoders
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.engine.trainable import trained_names
from flowloom.errors import WeightsError
from flowloom.models.adapters.adapter import attach
from flowloom.models.families.qwen_image import FAMILY
from flowloom.models.family import detect
from flowloom.models.qwen_text import RELEASED, TEMPLATE
from flowloom.models.weights import save_weights
from tests.engine.test_memory_plan import CARDS, GIB, write_hole
from tests.families.qwen_image import make_parts

CPU = torch.device("cpu")
IDLE = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ModelSection]:
    from diffusers import QwenImagePipeline

    folder = tmp_path_factory.mktemp("qwen")
    pipeline: Any = QwenImagePipeline(**make_parts(TEMPLATE))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline, resolve_paths(ModelSection(path=str(folder)), Path())


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with the headers of the released network, each small enough to be mapped."""
    from diffusers import QwenImageTransformer2DModel

    with torch.device("meta"):
        network = QwenImageTransformer2DModel()
    assert sum(weight.numel() for weight in network.parameters()) == 20_430_401_088
    folder, state = tmp_path_factory.mktemp("released"), network.state_dict()
    for i in range(8):
        part: Any = SimpleNamespace(state_dict=lambda i=i: dict(list(state.items())[i::8]))
        write_hole(folder / f"{i}.safetensors", part)
    return folder


@pytest.mark.parametrize("marks", [{}, {"__index_timestep_zero__": torch.zeros(0)}], ids=["2509", "2511"])
def test_a_single_file_has_the_networks_sizes(saved: tuple[Any, ModelSection], tmp_path: Path, marks: Any):
    """As ComfyUI uses it; a mark says that reference images are at noise level 0."""
    state = saved[0].transformer.state_dict() | marks
    path = tmp_path / "file.safetensors"
    save_weights(path, {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, {})
    assert detect(path) is FAMILY
    sizes, config = vars(FAMILY.sizes(path)), saved[0].transformer.config
    # The division of the rotary axes is not in the file: it is the release's.
    assert sizes.pop("axes_dims_rope") == (2, 7, 7)
    assert sizes.pop("zero_cond_t") == bool(marks)
    assert sizes == {key: config[key] for key in sizes}


def test_the_released_division_of_rotary_axes_follows_from_the_width_of_a_head():
    shapes = {
        "img_in.weight": (3072, 64),
        "transformer_blocks.0.attn.norm_q.weight": (128,),
        "proj_out.weight": (64, 3072),
        "txt_in.weight": (3072, RELEASED["text_config"]["hidden_size"]),
    }
    sizes = FAMILY.read_sizes(shapes, {})
    assert (sizes.axes_dims_rope, sizes.num_attention_heads, sizes.text_width) == ((16, 56, 56), 24, 3584)
    with pytest.raises(WeightsError, match="Layered"):
        FAMILY.read_sizes(shapes | {"time_text_embed.addition_t_embedding.weight": (2, 3072)}, {})


def test_layers_that_nothing_reads_are_not_trained(saved: tuple[Any, ModelSection]):
    network = FAMILY.load_network(saved[1].network_path, CPU, torch.float32)
    names = [name for name, _ in network.named_parameters()]
    left_out = set(names) - set(trained_names(RunConfig(model=saved[1]), names, 0))
    idle = {f"transformer_blocks.2.{part}.{leaf}" for part in IDLE for leaf in ("weight", "bias")}
    assert left_out == idle | {"transformer_blocks.2.attn.norm_added_q.weight"}
    draw = torch.Generator().manual_seed(1)
    texts = [{"states": torch.randn(5, 32, generator=draw)}]
    x = torch.randn(1, 6, 64, generator=draw)
    FAMILY.predict(network, x, torch.tensor([0.5]), texts, (4, 6)).square().sum().backward()
    still = {n for n, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert left_out == still
    adapted = attach(network, "lora", 2, 2, ["attn", "txt_mlp"]).layers
    assert "transformer_blocks.1.attn.to_add_out" in adapted
    assert not {f"transformer_blocks.2.{part}" for part in IDLE} & set(adapted)


def test_classifier_free_guidance_is_the_pipelines(saved: tuple[Any, ModelSection]):
    pipeline, section = saved
    encoders = load_encoders(section, RunConfig(model=section), CPU)
    network = FAMILY.load_network(section.network_path, CPU, torch.float32)
    made = SampleGenerator(network, encoders, Precision(CPU, torch.float32, torch.float32))
    image = made.generate(["a bar"], [5], SamplingParams(48, 32, 3, cfg=4.0, negative="blurry"))[0]
    expected = pipeline(
        "a bar",
        negative_prompt="blurry",
        true_cfg_scale=4.0,
        width=48,
        height=32,
        num_inference_steps=3,
        latents=torch.randn(6, 64, generator=generator(5, "picture"))[None],
        output_type="np",
    ).images[0]
    assert np.abs(np.asarray(image) - expected * 255).max() < 0.51


def test_the_lora_presets_fit_the_released_network(released: Path):
    sections = {size: dict(CARDS[f"lora-{size}gb"].config) for size in (12, 16, 24)}
    model = {"model": {"path": str(released)}}
    networks = Networks.from_config(RunConfig.model_validate(sections[12] | model))
    assert networks.params.num_blocks == 60
    for size, preset in sections.items():
        for side in (512, 1024):
            config = RunConfig.model_validate(preset | model | {"dataloader": {"base_resolution": [side]}})
            plan = plan_memory(config, networks, Machine(torch.device("cuda"), size * GIB, 96 * GIB))
            assert plan.fits, (size, side, plan.parts, plan.host_parts)
