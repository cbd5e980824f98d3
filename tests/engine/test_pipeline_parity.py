"""A complete image equals the one of diffusers' ChromaPipeline, given the correct mask."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowloom.config.run import RunConfig
from flowloom.engine.encode import Encoders
from flowloom.engine.lazy import opened
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.flow_matching.guidance import guided
from flowloom.flow_matching.samplers import euler, schedule
from flowloom.import_warnings import quiet_imports
from flowloom.models.autoencoder import Autoencoder, load_autoencoder
from flowloom.models.chroma import load_chroma
from flowloom.models.chroma_names import to_diffusers
from flowloom.models.text_encoder import StatesOnly, TextEncoder, load_text_encoder
from flowloom.models.weights import open_weights
from flowloom.nn.patches import image_ids, unpack
from flowloom.nn.tiny import TINY
from flowloom.nn.varlen import predict
from tests.fakes.tiny_pipelines import make_scaled_autoencoder, make_scheduler

with quiet_imports():
    from diffusers import ChromaPipeline, ChromaTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from transformers import T5EncoderModel, T5Tokenizer

# diffusers' Chroma uses a class that diffusers itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
CPU = torch.device("cpu")
PROMPTS = ["a red bar on white, number 1", "portrait of an old man"]
WIDTH, HEIGHT, STEPS, MAX_LENGTH = 64, 96, 6, 64
ROWS, COLUMNS = HEIGHT // 16, WIDTH // 16


class BooleanMasked(ChromaTransformer2DModel):
    """The pipeline hands its mask over as numbers, which attention adds to its scores: 0 hides nothing."""

    def forward(self, *args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
        """diffusers' own, with a mask that masks."""
        return super().forward(*args, attention_mask=attention_mask.bool(), **kwargs)


def make_transformer(family: Any, kind: type[ChromaTransformer2DModel]) -> ChromaTransformer2DModel:
    transformer = kind(
        in_channels=TINY.in_channels,
        num_layers=TINY.depth,
        num_single_layers=TINY.depth_single_blocks,
        attention_head_dim=TINY.hidden_size // TINY.num_heads,
        num_attention_heads=TINY.num_heads,
        joint_attention_dim=TINY.context_in_dim,
        axes_dims_rope=TINY.axes_dim,
        approximator_num_channels=TINY.approximator_in_dim,
        approximator_hidden_dim=TINY.approximator_hidden_size,
        approximator_layers=TINY.approximator_depth,
    )
    transformer.load_state_dict(to_diffusers(open_weights(family.chroma_path)))
    return transformer.eval()


@pytest.fixture(scope="module")
def pipeline(tiny_family: Any) -> ChromaPipeline:
    """diffusers' pipeline over the tiny family, with diffusers' own conversions where it has any."""
    vae = make_scaled_autoencoder()
    vae.load_state_dict(convert_ldm_vae_checkpoint(load_file(tiny_family.vae_path), vae.config))
    pipeline = ChromaPipeline(
        scheduler=make_scheduler(),
        vae=vae.eval(),
        text_encoder=T5EncoderModel.from_pretrained(tiny_family.t5_path, local_files_only=True).eval(),
        tokenizer=T5Tokenizer.from_pretrained(tiny_family.t5_path, local_files_only=True),
        transformer=make_transformer(tiny_family, BooleanMasked),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generated_by(pipeline: ChromaPipeline, noise: Tensor, cfg: float, negative: str = "") -> Tensor:
    """Images (B, 3, H, W) in [0, 1]."""
    output: Any = pipeline(
        prompt=PROMPTS,
        negative_prompt=negative,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=STEPS,
        guidance_scale=cfg,
        latents=noise,
        max_sequence_length=MAX_LENGTH,
        output_type="pt",
    )
    return output.images


class Ours:
    """The same networks from the same files, by our own loading, and FLOW's way of sampling."""

    def __init__(self, family: Any):
        self.model = load_chroma(family.chroma_path, CPU, torch.float32)
        self.autoencoder: Autoencoder = load_autoencoder(family.vae_path, CPU, torch.float32)
        config = family.t5_path / "config.json"
        self.text_encoder: TextEncoder = load_text_encoder(
            family.t5_path, config, family.t5_path, CPU, torch.float32
        )

    @torch.no_grad()
    def generate(self, noise: Tensor, cfg: float, negative: str = "") -> Tensor:
        """Images (B, 3, H, W) in [0, 1]."""
        positives = self.text_encoder.encode(PROMPTS, MAX_LENGTH)
        negatives = self.text_encoder.encode([negative] * len(PROMPTS), MAX_LENGTH)
        ids = image_ids(2 * ROWS, 2 * COLUMNS)

        def velocity(x: Tensor, level: float) -> Tensor:
            noise_level = torch.full((len(x),), level)
            towards = predict(self.model, x, noise_level, positives, ids)
            away = predict(self.model, x, noise_level, negatives, ids)
            return guided(towards, away, cfg)

        latents = euler(velocity, noise, schedule(STEPS, ROWS * COLUMNS))
        pixels = self.autoencoder.decode(unpack(latents, 2 * ROWS, 2 * COLUMNS))
        return (pixels / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def ours(tiny_family: Any) -> Ours:
    return Ours(tiny_family)


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(2, ROWS * COLUMNS, 64, generator=torch.Generator().manual_seed(4))


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape == (2, 3, HEIGHT, WIDTH)
    return (one - other).abs().max().item()


@pytest.mark.parametrize(
    ("cfg", "negative"), [(1.0, ""), (4.0, ""), (4.0, "blue circle and yellow square, number 30")]
)
def test_a_complete_image_is_the_pipelines(
    ours: Ours, pipeline: ChromaPipeline, noise: Tensor, cfg: float, negative: str
):
    expected = generated_by(pipeline, noise, cfg, negative)
    assert expected.std() > 0.01
    # Each pass agrees to about 1e-5; guidance weighs two of them by 4 and 3, and there are six steps.
    assert difference(ours.generate(noise, cfg, negative), expected) < 4e-5


def test_the_mask_and_both_prompts_matter_to_the_image(
    ours: Ours, pipeline: ChromaPipeline, noise: Tensor, tiny_family: Any
):
    expected = generated_by(pipeline, noise, 4.0)
    plain = make_transformer(tiny_family, ChromaTransformer2DModel)
    uncorrected = ChromaPipeline(**pipeline.components | {"transformer": plain})  # pyright: ignore[reportArgumentType]
    uncorrected.set_progress_bar_config(disable=True)
    assert difference(generated_by(uncorrected, noise, 4.0), expected) > 1e-3
    assert difference(generated_by(pipeline, noise, 4.0, "blue circle"), expected) > 1e-3
    assert difference(generated_by(pipeline, noise, 1.0), expected) > 1e-3


def test_the_sample_generator_makes_the_pipelines_image(ours: Ours, pipeline: ChromaPipeline):
    config = RunConfig.model_validate({"model": {"t5_max_length": MAX_LENGTH}})
    encoders = Encoders(opened(ours.autoencoder), opened(StatesOnly(ours.text_encoder)), config, CPU)
    sample_generator = SampleGenerator(ours.model, encoders, Precision(CPU, torch.float32, torch.float32))
    seeds = [7, 8]
    params = SamplingParams(WIDTH, HEIGHT, STEPS, cfg=4.0, negative="blue circle")
    images = np.stack([np.asarray(image) for image in sample_generator.generate(PROMPTS, seeds, params)])
    own = [torch.randn(ROWS * COLUMNS, 64, generator=generator(seed, "picture")) for seed in seeds]
    expected = generated_by(pipeline, torch.stack(own), 4.0, "blue circle").permute(0, 2, 3, 1) * 255
    # Both round to whole levels of 255.
    assert np.abs(images - expected.numpy()).max() < 0.51
