"""FLUX.1 at tiny random sizes against diffusers' FluxPipeline: network, gradients, image, LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from torch import Tensor

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.engine.build import load_encoders
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.models.families.flux1 import FAMILY
from flowloom.models.family import detect
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.recompute import Recompute
from tests.fakes.tiny_pipelines import make_flux1_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
CPU = torch.device("cpu")
PROMPTS = ["a red bar on white, number 1", "blue bar"]
WIDTH, HEIGHT, STEPS, MAX_LENGTH = 64, 96, 4, 24
GRID = HEIGHT // 8, WIDTH // 8


@pytest.fixture(scope="module", params=["dev", "schnell"])
def pipeline(request: Any, tiny_family: Any, tmp_path_factory: Any) -> tuple[FluxPipeline, Path]:
    """diffusers' pipeline, and the folder that it is saved in."""
    folder = tmp_path_factory.mktemp(request.param)
    return make_flux1_pipeline(
        tiny_family.t5_path, folder, is_dev=request.param == "dev"
    ), folder / "pipeline"


@pytest.fixture
def section(pipeline: tuple[FluxPipeline, Path]) -> ModelSection:
    """The model section that names nothing but the folder."""
    return resolve_paths(ModelSection(path=str(pipeline[1]), t5_max_length=MAX_LENGTH), Path())


def test_schnell_is_warned_about(section: ModelSection):
    is_dev = FAMILY.read_sizes(FAMILY.open_weights(section.network_path).shapes, {}).guidance_embeds
    assert ["distilled" in note for note in FAMILY.notes(section)] == ([] if is_dev else [True])


def inputs(section: ModelSection) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(3)
    texts = FAMILY.load_conditioner(section, CPU, torch.float32).encode(PROMPTS, MAX_LENGTH)
    return torch.randn(2, GRID[0] * GRID[1] // 4, 64, generator=draw), torch.tensor([0.2, 0.9]), texts


@pytest.mark.parametrize("recomputed", [(0, 0), (2, 0), (3, 0), (0, 3), (1, 1)])
def test_prediction_and_gradients_are_the_pipelines(
    pipeline: Any, section: ModelSection, recomputed: tuple[int, int]
):
    theirs, ours = pipeline[0].transformer, FAMILY.load_network(section.network_path, CPU, torch.float32)
    FAMILY.recompute(ours, Recompute(*recomputed))
    x, level, texts = inputs(section)
    ids = FluxPipeline._prepare_latent_image_ids(2, GRID[0] // 2, GRID[1] // 2, CPU, torch.float32)
    expected = theirs(
        hidden_states=x,
        encoder_hidden_states=torch.stack([text["states"] for text in texts]),
        pooled_projections=torch.stack([text["pooled"] for text in texts]),
        timestep=level,
        img_ids=ids,
        txt_ids=torch.zeros(MAX_LENGTH, 3),
        guidance=torch.ones(2) if theirs.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    found = FAMILY.predict(ours, x, level, texts, GRID)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for network, output in ((theirs, expected), (ours, found)):
        network.zero_grad()
        output.square().mean().backward()
    gradients = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-4, atol=1e-6)


def generate(section: ModelSection, network: Any, seed: int) -> np.ndarray:
    config = RunConfig(model=section)
    encoders = load_encoders(section, config, CPU)
    made = SampleGenerator(network, encoders, Precision(CPU, torch.float32, torch.float32))
    params = SamplingParams(WIDTH, HEIGHT, STEPS, cfg=1.0, guidance=2.5)
    return np.asarray(made.generate(PROMPTS[:1], [seed], params)[0])


def generate_by_pipeline(pipeline: FluxPipeline, seed: int) -> np.ndarray:
    tokens = GRID[0] * GRID[1] // 4
    latents = torch.randn(tokens, 64, generator=generator(seed, "picture"))[None]
    arguments: dict[str, Any] = {"max_sequence_length": MAX_LENGTH, "output_type": "np", "latents": latents}
    size = {"width": WIDTH, "height": HEIGHT, "num_inference_steps": STEPS, "guidance_scale": 2.5}
    output: Any = pipeline(PROMPTS[0], **arguments, **size)
    return output.images[0] * 255


def test_an_image_is_the_pipelines(pipeline: Any, section: ModelSection):
    network = FAMILY.load_network(section.network_path, CPU, torch.float32)
    assert np.abs(generate(section, network, 7) - generate_by_pipeline(pipeline[0], 7)).max() < 0.51


def released_state(columns: int = 2) -> dict[str, Tensor]:
    """Tensors under Black Forest Labs' names.

    diffusers' converter assumes a width of 3072: the matrices are narrow, so that this stays small.
    """
    draw, width = torch.Generator().manual_seed(1), 3072
    shapes = {
        "img_in": width,
        "txt_in": width,
        "final_layer.linear": 64,
        "final_layer.adaLN_modulation.1": 6144,
    }
    shapes |= {
        f"{part}_in.{side}_layer": 8 for part in ("time", "vector", "guidance") for side in ("in", "out")
    }
    double = {
        "mod.lin": 6 * width,
        "attn.qkv": 3 * width,
        "attn.proj": width,
        "mlp.0": 4 * width,
        "mlp.2": width,
    }
    shapes |= {
        f"double_blocks.0.{side}_{name}": rows for side in ("img", "txt") for name, rows in double.items()
    }
    single = {"modulation.lin": 3 * width, "linear1": 7 * width, "linear2": width}
    shapes |= {f"single_blocks.0.{name}": rows for name, rows in single.items()}
    state = {f"{name}.weight": torch.randn(rows, columns, generator=draw) for name, rows in shapes.items()}
    state |= {f"{name}.bias": torch.randn(rows, generator=draw) for name, rows in shapes.items()}
    norms = [f"double_blocks.0.{side}_attn.norm" for side in ("img", "txt")] + ["single_blocks.0.norm"]
    return state | {
        f"{norm}.{side}_norm.scale": torch.randn(128, generator=draw)
        for norm in norms
        for side in ("query", "key")
    }


def test_a_single_file_is_converted_as_by_diffusers(tmp_path: Path):
    state = released_state()
    path = tmp_path / "flux1-dev.safetensors"
    save_weights(path, state, {})
    assert detect(path) is FAMILY
    found, expected = FAMILY.open_weights(path), convert_flux_transformer_checkpoint_to_diffusers(dict(state))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found.shapes[name] == tuple(tensor.shape)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert open_weights(path).keys() == state.keys()
