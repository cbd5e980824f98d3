"""Every family against diffusers' own pipeline at a tiny random size; the tests are the same for all.

The training loss does not show a wrong sign or time direction: the learning check trains on one image with
our engine and lets diffusers' pipeline generate it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import load_encoders
from flowloom.engine.export import export_adapter
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.models.adapters.read import load_onto
from flowloom.models.family import Conditioning, detect, family_for
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.engine.conftest import make_config, make_run, synthetic_data  # noqa: F401 -- fixtures
from tests.families.flux1 import TinyFlux1
from tests.families.flux2 import TinyFlux2
from tests.families.krea2 import TinyKrea2
from tests.families.lumina2 import TinyLumina2
from tests.families.qwen_image import TinyQwenImage
from tests.families.tiny import TinyPipeline
from tests.families.zimage import TinyZImage

FAMILIES: tuple[Any, ...] = (
    TinyFlux1(),
    TinyFlux2(is_dev=False),
    TinyKrea2(),
    TinyLumina2(),
    TinyQwenImage(),
    TinyZImage(),
)

pytestmark = pytest.mark.filterwarnings("ignore:.*PosEmbed` is deprecated:FutureWarning")
CPU = torch.device("cpu")
PROMPTS = ["a red bar on white, number 1", "blue bar"]
SIZE, STEPS = (64, 96), 4
LORA = {"rank": 2, "alpha": 4}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"training": {"lr": 1e-3}},
    "dora": {"lora": LORA, "method": {"kind": "dora"}, "memory": {"streamed_blocks": 1}},
    "lokr": {"lora": LORA, "method": {"kind": "lokr"}, "ema": {"decay": 0.9}},
    "lora-8bit": {"lora": LORA | {"base_model_quant_level": "8bit"}, "memory": {"checkpointed_blocks": 1}},
}
LEARNING_STEPS = 300
LEARNED = 0.4
"""Largest mean squared error of learned latents, as a share of their variance: their mean gives 1, a wrong
sign or time direction more than 5."""


class Tiny(NamedTuple):
    """A family with its pipeline and the folder that holds it."""

    given: TinyPipeline
    pipeline: Any
    section: ModelSection

    @property
    def family(self) -> Any:
        return self.given.family

    def network(self, device: torch.device = CPU) -> Any:
        return self.family.load_network(self.section.network_path, device, torch.float32)

    def inputs(self) -> tuple[Tensor, Tensor, list[Conditioning]]:
        """Tokens, noise levels, texts."""
        with torch.no_grad():
            texts = self.given.texts(self.pipeline, PROMPTS)
        x = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(3))
        return x, torch.tensor([0.2, 0.9]), texts

    @property
    def grid(self) -> tuple[int, int]:
        return SIZE[1] // self.family.factor, SIZE[0] // self.family.factor

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and their width."""
        height, width = self.grid
        patch = self.family.patch
        return height * width // patch**2, self.family.sizes(self.section.network_path).in_channels


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda given: given.family.name)
def tiny(request: Any, tiny_family: Any, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    given: TinyPipeline = request.param
    folder = tmp_path_factory.mktemp(given.family.name) / "pipeline"
    pipeline = given.make(tiny_family.t5_path, tmp_path_factory.mktemp("parts"))
    with torch.no_grad():
        # Latents of a random autoencoder hardly vary: everything would be learned by predicting their mean.
        pipeline.vae.encoder.conv_out.weight.mul_(8)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return Tiny(given, pipeline, resolve_paths(ModelSection(path=str(folder), **given.model), Path()))


def model_keys(tiny: Tiny) -> dict[str, Any]:
    return tiny.section.model_dump() | {"chroma_path": ""}


def losses(run_dir: RunDir) -> list[float]:
    return [event["loss"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def tensors(run_dir: RunDir) -> dict[str, Tensor]:
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    paths = sorted(checkpoint.glob("*.safetensors"))
    return {f"{path.name}:{name}": tensor for path in paths for name, tensor in open_weights(path).items()}


def test_a_diffusers_folder_is_recognized_with_all_its_files(tiny: Tiny):
    assert detect(Path(tiny.section.path)) is family_for(tiny.section) is tiny.family
    assert all(getattr(tiny.section, file.key) for file in tiny.family.files)


def test_captions_are_encoded_as_by_the_pipeline(tiny: Tiny):
    conditioner = tiny.family.load_conditioner(tiny.section, CPU, torch.float32)
    found = conditioner.encode(PROMPTS, tiny.section.max_text_tokens)
    with torch.no_grad():
        expected = tiny.given.texts(tiny.pipeline, PROMPTS)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() == tiny.family.conditioning.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_recomputed", [0, 2])
def test_prediction_and_gradients_are_those_of_diffusers(tiny: Tiny, num_recomputed: int):
    from flowloom.nn.recompute import Recompute

    theirs, ours = tiny.pipeline.transformer, tiny.network()
    tiny.family.recompute(ours, Recompute(num_recomputed))
    x, level, texts = tiny.inputs()
    outputs = [
        tiny.given.velocity(theirs, x, level, texts, tiny.grid),
        tiny.family.predict(ours, x, level, texts, tiny.grid),
    ]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    for network, output in zip((theirs, ours), outputs, strict=True):
        network.zero_grad()
        output.square().mean().backward()
    gradients = dict(theirs.named_parameters())
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, weight in ours.named_parameters():
        expected = gradients[name].grad
        assert (weight.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_an_image_is_the_pipelines(tiny: Tiny):
    config = RunConfig(model=tiny.section)
    encoders = load_encoders(tiny.section, config, CPU)
    made = SampleGenerator(tiny.network(), encoders, Precision(CPU, torch.float32, torch.float32))
    params = SamplingParams(*SIZE, STEPS, cfg=1.0, guidance=tiny.given.guidance)
    found = np.asarray(made.generate(PROMPTS[:1], [7], params)[0])
    noise = torch.randn(tiny.shape, generator=generator(7, "picture"))[None]
    expected = tiny.given.image(tiny.pipeline, PROMPTS[0], noise, SIZE, STEPS)
    assert expected.std() > 1
    assert np.abs(found - expected).max() < 0.51


def test_operations_are_counted_as_torch_counts_them(tiny: Tiny):
    _, _, texts = tiny.inputs()
    network = tiny.network()
    # torch does not count the CPU's other kernels.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        x = torch.zeros(1, *tiny.shape)
        tiny.family.predict(network, x, torch.ones(1), texts[:1], tiny.grid)
    sizes = tiny.family.sizes(tiny.section.network_path)
    formula = tiny.family.flops(sizes, tiny.shape[0], len(texts[0]["states"]))
    assert formula.forward == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny: Tiny,
    make_run: Callable[..., RunDir],  # noqa: F811
    method: str,
    tmp_path: Path,
):
    cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache"), "dtype": "fp32"}
    data = {"uncond_percentage": 0.0, "tag_drop_percentage": 0.0, "shuffle_tags": False}
    sections = {"model": model_keys(tiny), "dataloader": data, **METHODS[method]}
    whole, parts = make_run("whole", **sections), make_run("parts", **sections, cache=cache)
    for run_dir, ends in ((whole, [3]), (parts, [2, 3])):
        for end in ends:
            change_by_flags(run_dir, [("limits.max_steps", str(end))])
            run_engine(run_dir)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 3
    assert all(0 < loss < 10 for loss in losses(whole))
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_trained_lora_does_the_same_in_diffusers(
    tiny: Tiny,
    make_run: Callable[..., RunDir],  # noqa: F811
    tmp_path: Path,
):
    run_dir = make_run(
        model=model_keys(tiny), lora={"rank": 4, "alpha": 8}, limits={"max_steps": 3}, training={"lr": 0.02}
    )
    run_engine(run_dir)
    x, level, texts = tiny.inputs()
    predict = partial(tiny.family.predict, x=x, noise_level=level, texts=texts, grid=tiny.grid)
    outputs: dict[str, Tensor] = {}
    with torch.no_grad():
        base = predict(tiny.network())
        for form in ("comfy", "kohya", "diffusers"):
            export_adapter(run_dir.path, form, tmp_path / f"{form}.safetensors")
            network = tiny.network()
            load_onto(network, tmp_path / f"{form}.safetensors")
            outputs[form] = predict(network)
    torch.testing.assert_close(outputs["comfy"], outputs["kohya"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs["comfy"], outputs["diffusers"], rtol=0, atol=1e-5)
    theirs = type(tiny.pipeline).from_pretrained(tiny.section.path, local_files_only=True)
    exported = tmp_path / "diffusers.safetensors"
    alone = tmp_path / "alone.safetensors"  # without its run or base, a file shows its family
    export_adapter(tmp_path / "comfy.safetensors", "diffusers", alone)
    assert dict(open_weights(alone)).keys() == dict(open_weights(exported)).keys()
    theirs.load_lora_weights(str(exported))
    adapted = [part for part in theirs.transformer.modules() if isinstance(part, BaseTunerLayer)]
    assert len(adapted) == sum(name.endswith("lora_A.weight") for name in open_weights(exported)) > 0
    with torch.no_grad():
        found = tiny.given.velocity(theirs.transformer, x, level, texts, tiny.grid)
        base_by_theirs = tiny.given.velocity(tiny.pipeline.transformer, x, level, texts, tiny.grid)
    torch.testing.assert_close(found - base_by_theirs, outputs["diffusers"] - base, rtol=0, atol=1e-5)
    assert (outputs["diffusers"] - base).abs().max() > 1e-3


@pytest.mark.slow
def test_diffusers_generates_the_image_that_was_learned(
    tiny: Tiny,
    make_run: Callable[..., RunDir],  # noqa: F811
    tmp_path: Path,
):
    """One image of 64 x 64 pixels, learned until diffusers' pipeline makes its latents from noise."""
    draw = np.random.default_rng(1)
    coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8))
    coarse.resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / "one.png")
    row = {"filename": "one.png", "caption_or_tags": "one", "width": 64, "height": 64}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(row)}\n" * 8)
    data = {"jsonl_metadata_path": str(tmp_path / "data.jsonl"), "image_folder_path": str(tmp_path)}
    data |= {"uncond_percentage": 0.0, "tag_drop_percentage": 0.0, "shuffle_tags": False, "batch_size": 8}
    run_dir = make_run(
        model=model_keys(tiny),
        dataloader=data,
        training={"lr": 4e-3, "warmup_steps": 10, "weight_decay": 0.0, "train_minibatch": 8},
        limits={"max_steps": LEARNING_STEPS},
        objective={"noise_level": {"kind": "uniform"}, "lowercase_percentage": 0.0},
        lr_schedule={"kind": "cosine"},
        cache={"latents": "memory", "text": "memory"},
    )
    run_engine(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    theirs = type(tiny.pipeline).from_pretrained(tiny.section.path, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    (weights,) = (path for path in checkpoint.glob("*.safetensors") if "optimizer" not in path.name)
    theirs.transformer.load_state_dict(dict(tiny.family.open_weights(weights)))
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"))
    codec = tiny.family.load_codec(tiny.section, CPU, torch.float32)
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = tiny.family.pack(codec.encode(images))
    noise = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4))
    found = tiny.given.latents(theirs, "one", noise, (64, 64), 8)
    assert (found - wanted).square().mean() < LEARNED * wanted.var()
