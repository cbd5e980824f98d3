"""FLUX.2 where it differs from other families: files, autoencoder, schedule, dev's text, kohya's names.

The contract of all families is in tests/families.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import Tensor

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import load_encoders
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.export import export_adapter
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.model_library.requirements import unfit_models
from flowloom.models import flux2_text
from flowloom.models.adapters.read import load_onto
from flowloom.models.autoencoder_flux2 import load_flux2_autoencoder
from flowloom.models.families.flux2 import FAMILY, MODULATIONS
from flowloom.models.family import detect
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.recompute import Recompute
from flowloom.run.directory import RunDir
from flowloom.trainers.engine import PRESETS
from tests.engine.test_memory_plan import write_hole
from tests.families.flux2 import TinyFlux2, released_autoencoder
from tests.families.test_contract import losses

CPU = torch.device("cpu")
PROMPTS = ["a red bar on white, number 1", "blue bar"]
WIDTH, HEIGHT = 96, 64
GRID = HEIGHT // 16, WIDTH // 16
LORA = {"rank": 2, "alpha": 4}


class Made(NamedTuple):
    """diffusers' pipeline, and the model section that names nothing but its folder."""

    given: TinyFlux2
    pipeline: Any
    section: ModelSection

    def network(self) -> Any:
        return FAMILY.load_network(self.section.network_path, CPU, torch.float32)

    def inputs(self) -> tuple[Tensor, Tensor, list[Any]]:
        x = torch.randn(2, GRID[0] * GRID[1], 128, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            return x, torch.tensor([0.2, 0.9]), self.given.texts(self.pipeline, PROMPTS)


def made(folder: Path, *, is_dev: bool) -> Made:
    given = TinyFlux2(is_dev=is_dev)
    pipeline = given.make(folder, folder)
    pipeline.save_pretrained(folder)
    return Made(given, pipeline, resolve_paths(ModelSection(path=str(folder), **given.model), Path()))


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("klein"), is_dev=False)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("dev"), is_dev=True)


@pytest.mark.parametrize(
    ("name", "is_distilled"),
    [("flux-2-klein-4b", True), ("flux-2-klein-base-9b", False), ("flux2-dev", False), ("mine", False)],
)
def test_distilled_networks_are_warned_about(tmp_path: Path, name: str, is_distilled: bool):
    section = ModelSection(path=str(tmp_path / f"{name}.safetensors"))
    assert ["distilled" in note for note in FAMILY.notes(section)] == [True] * is_distilled
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model_index.json").write_text(f'{{"is_distilled": {str(is_distilled).lower()}}}')
    assert len(FAMILY.notes(ModelSection(path=str(folder)))) == is_distilled


def test_images_are_encoded_as_by_the_pipeline(klein: Made):
    pixels = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae, codec = klein.pipeline.vae, FAMILY.load_codec(klein.section, CPU, torch.float32)
    with torch.no_grad():
        latents = klein.pipeline._encode_vae_image(pixels, None)
        spread = vae.encode(pixels).latent_dist
        drawn = klein.pipeline._patchify_latents(spread.mean + spread.std)
    torch.testing.assert_close(codec.encode(pixels), latents, rtol=0, atol=1e-5)
    mean, logvar = codec.encode_spread(pixels).unbind(1)
    centre, variance = vae.bn.running_mean.view(-1, 1, 1), vae.bn.running_var.view(-1, 1, 1)
    normalised = (drawn - centre) / torch.sqrt(variance + 1e-4)
    torch.testing.assert_close(mean + (0.5 * logvar).exp(), normalised, rtol=0, atol=1e-5)
    assert (codec.factor, codec.channels) == (16, 128)


def test_dev_reads_mistral_and_has_guidance(dev: Made):
    assert detect(Path(dev.section.path)) is FAMILY
    texts = FAMILY.load_conditioner(dev.section, CPU, torch.float32).encode(PROMPTS, dev.given.max_length)
    x, level, expected = dev.inputs()
    for ours, theirs in zip(texts, expected, strict=True):
        torch.testing.assert_close(ours["states"], theirs["states"], rtol=0, atol=1e-5)
    compare_gradients(dev, x, level, texts, Recompute(1, 1))
    encoders = load_encoders(dev.section, RunConfig(model=dev.section), CPU)
    generate = SampleGenerator(dev.network(), encoders, Precision(CPU, torch.float32, torch.float32)).generate
    found = np.asarray(generate(PROMPTS[:1], [7], SamplingParams(WIDTH, HEIGHT, 4, cfg=1.0, guidance=2.5))[0])
    noise = torch.randn(GRID[0] * GRID[1], 128, generator=generator(7, "picture"))[None]
    image = dev.given.image(dev.pipeline, PROMPTS[0], noise, (WIDTH, HEIGHT), 4)
    assert np.abs(found - image).max() < 0.51


def test_mistral_is_read_from_a_file_of_its_first_layers(
    dev: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As ComfyUI uses it: no config.json, no norm at the end, and a tokenizer as one more tensor."""
    monkeypatch.setattr(
        flux2_text, "RELEASED_MISTRAL", dev.pipeline.text_encoder.config.text_config.to_dict()
    )
    whole = dev.pipeline.text_encoder.state_dict()
    prefix = "model.language_model."
    first = {f"model.{k.removeprefix(prefix)}": v for k, v in whole.items() if k.startswith(prefix)}
    kept = {k: v for k, v in first.items() if not k.startswith(("model.layers.30.", "model.norm."))}
    path = tmp_path / "mistral_3_small_flux2.safetensors"
    save_weights(path, kept | {"tekken_model": torch.zeros(4, dtype=torch.uint8)}, {})
    section = dev.section.model_copy(update={"text_encoder_path": str(path)})
    (found,) = FAMILY.load_conditioner(section, CPU, torch.float32).encode(["a bar"], dev.given.max_length)
    with torch.no_grad():
        (expected,) = dev.given.texts(dev.pipeline, ["a bar"])
    torch.testing.assert_close(found["states"], expected["states"], rtol=0, atol=1e-5)


def test_references_join_the_sequence_as_in_the_pipeline(klein: Made, tmp_path: Path):
    """Rows with two references, one, and none in a batch, and an image edited from two files."""
    files, draw = [tmp_path / "a.png", tmp_path / "b.png"], np.random.default_rng(2)
    pixels = []
    for file, size in zip(files, ((64, 80, 3), (96, 64, 3)), strict=True):
        pixels.append(draw.integers(0, 255, size, np.uint8))
        Image.fromarray(pixels[-1]).save(file)
    encoders = load_encoders(klein.section, RunConfig(model=klein.section), CPU)
    made = SampleGenerator(klein.network(), encoders, Precision(CPU, torch.float32, torch.float32))
    names = tuple(str(file) for file in files)
    params = SamplingParams(WIDTH, HEIGHT, 3, cfg=1.0, references=names)
    found = np.asarray(made.generate(PROMPTS[:1], [7], params)[0])
    noise = torch.randn(GRID[0] * GRID[1], 128, generator=generator(7, "picture"))[None]
    image = klein.pipeline(
        [Image.fromarray(each) for each in pixels],
        PROMPTS[0],
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=3,
        guidance_scale=1.0,
        latents=FAMILY.unpack(noise, GRID),
        max_sequence_length=klein.given.max_length,
        output_type="np",
    ).images[0]
    assert np.abs(found - image * 255).max() < 0.51
    planes = [encoders.image_latents(each) for each in pixels]
    x, level, texts = klein.inputs()
    mixed = encoders.with_references([*texts, texts[0]], [planes, [], planes[:1]])
    rows, levels, network = torch.cat((x, x[:1])), torch.cat((level, level[:1])), klein.network()
    with torch.no_grad():
        together = FAMILY.predict(network, rows, levels, mixed, GRID)
        for i, text in enumerate(mixed):
            alone = FAMILY.predict(network, rows[i : i + 1], levels[i : i + 1], [text], GRID)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_recomputed_feed_forward_parts_change_no_gradient(klein: Made):
    compare_gradients(klein, *klein.inputs(), Recompute(0, 3))


def compare_gradients(made: Made, x: Tensor, level: Tensor, texts: Any, recompute: Recompute) -> None:
    theirs, ours = made.pipeline.transformer, made.network()
    FAMILY.recompute(ours, recompute)
    expected = made.given.velocity(theirs, x, level, texts, GRID)
    found = FAMILY.predict(ours, x, level, texts, GRID)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for network, output in ((theirs, expected), (ours, found)):
        network.zero_grad()
        output.square().mean().backward()
    gradients = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("tokens", "steps"), [(256, 4), (1024, 50), (4096, 28), (4301, 28)])
def test_noise_levels_are_those_of_the_pipeline(tokens: int, steps: int):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    mu = compute_empirical_mu(tokens, steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    expected = np.asarray(scheduler.sigmas).tolist()
    assert FAMILY.schedule(None, steps, tokens) == pytest.approx(expected, abs=1e-6)


def released_state(*, is_dev: bool, norms: str = "scale", width: int = 32) -> dict[str, Tensor]:
    """Tensors under Black Forest Labs' names."""
    draw = torch.Generator().manual_seed(1)
    times = ("time", "guidance") if is_dev else ("time",)
    shapes = {"img_in": width, "txt_in": width, "final_layer.linear": 128}
    shapes |= {"final_layer.adaLN_modulation.1": 2 * width}
    shapes |= {f"{part}_in.{side}_layer": width for part in times for side in ("in", "out")}
    shapes |= {f"{part}.lin": 6 * width for part in MODULATIONS[:2]} | {f"{MODULATIONS[2]}.lin": 3 * width}
    double = {"attn.qkv": 3 * width, "attn.proj": width, "mlp.0": 6 * width, "mlp.2": width}
    shapes |= {
        f"double_blocks.0.{side}_{name}": rows for side in ("img", "txt") for name, rows in double.items()
    }
    shapes |= {f"single_blocks.{i}.linear1": 9 * width for i in (0, 1)}
    shapes |= {f"single_blocks.{i}.linear2": width for i in (0, 1)}
    state = {f"{name}.weight": torch.randn(rows, width, generator=draw) for name, rows in shapes.items()}
    names = [f"double_blocks.0.{side}_attn.norm" for side in ("img", "txt")]
    names += [f"single_blocks.{i}.norm" for i in (0, 1)]
    return state | {
        f"{norm}.{side}_norm.{norms}": torch.randn(8, generator=draw)
        for norm in names
        for side in ("query", "key")
    }


@pytest.mark.parametrize("is_dev", [False, True])
@pytest.mark.parametrize(("prefix", "norms"), [("", "scale"), ("model.diffusion_model.", "weight")])
def test_a_single_file_is_converted_as_by_diffusers(tmp_path: Path, is_dev: bool, prefix: str, norms: str):
    expected = convert_flux2_transformer_checkpoint_to_diffusers(released_state(is_dev=is_dev))
    state = released_state(is_dev=is_dev, norms=norms)
    path = tmp_path / "flux2.safetensors"
    save_weights(path, {prefix + name: tensor for name, tensor in state.items()}, {})
    assert detect(path) is FAMILY
    found = FAMILY.open_weights(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found.shapes[name] == tuple(tensor.shape)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    sizes: Any = FAMILY.sizes(path)
    assert sizes.guidance_embeds is is_dev


def test_the_autoencoder_is_read_from_a_single_file(klein: Made, tmp_path: Path):
    """As released: Black Forest Labs' names, the convolutions around the latents inside of the two halves."""
    vae = klein.pipeline.vae
    expected = vae.state_dict()
    released = released_autoencoder(expected)
    del released["bn.num_batches_tracked"]
    outside = {
        name.replace("encoder.quant", "quant").replace("decoder.post", "post"): tensor
        for name, tensor in released.items()
    }
    sizes = {key: vae.config[key] for key in ("down_block_types", "up_block_types", "layers_per_block")}
    converted = convert_ldm_vae_checkpoint(dict(outside), sizes)
    for name, tensor in converted.items():
        torch.testing.assert_close(tensor.reshape(expected[name].shape), expected[name], rtol=0, atol=0)
    path = tmp_path / "ae.safetensors"
    save_weights(path, released, {"norm_num_groups": "4"})
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = klein.pipeline._encode_vae_image(pixels, None)
    torch.testing.assert_close(
        load_flux2_autoencoder(path, CPU, torch.float32).encode(pixels), latents, rtol=0, atol=1e-5
    )


def test_a_lora_in_kohyas_names_does_the_same_in_diffusers(
    klein: Made, make_run: Callable[..., RunDir], tmp_path: Path
):
    """musubi-tuner's names, which diffusers reads too; layers that all blocks share are not adapted."""
    model = klein.section.model_dump() | {"chroma_path": ""}
    run_dir = make_run(model=model, lora=LORA, limits={"max_steps": 3}, training={"lr": 0.02})
    run_engine(run_dir)
    exported = tmp_path / "kohya.safetensors"
    export_adapter(run_dir.path, "kohya", exported)
    network = klein.network()
    load_onto(network, exported)
    theirs = Flux2KleinPipeline.from_pretrained(klein.section.path, local_files_only=True)
    theirs.load_lora_weights(str(exported))
    adapted = [part for part in theirs.transformer.modules() if isinstance(part, BaseTunerLayer)]
    assert len(adapted) == 12 + 2 * 2
    assert len([name for name in open_weights(exported) if name.endswith("lora_down.weight")]) == 8 + 2 * 2
    given = klein.inputs()
    with torch.no_grad():
        ours = FAMILY.predict(network, *given, GRID)
        found = klein.given.velocity(theirs.transformer, *given, GRID)
        base = klein.given.velocity(klein.pipeline.transformer, *given, GRID)
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)
    assert (found - base).abs().max() > 1e-3


METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "rotation": {
        "training": {"change_layer_every": 1, "trained_single_blocks": 1, "trained_double_blocks": 1},
    },
    "4bit": {"lora": LORA | {"base_model_quant_level": "4bit"}},
    "streamed": {"lora": LORA, "memory": {"streamed_blocks": 2}},
}


def test_a_text_encoder_of_another_width_is_rejected(tmp_path: Path):
    encoder, network = tmp_path / "qwen_3_8b.safetensors", tmp_path / "klein.safetensors"
    save_weights(encoder, {"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 64)}, {})
    save_weights(network, released_state(is_dev=False), {})
    (problem,) = unfit_models({"path": str(network), "text_encoder_path": str(encoder)})
    assert problem.where == "model.text_encoder_path"
    assert "64 numbers per token" in problem.text


def test_every_method_begins_with_the_same_loss(make_run: Callable[..., RunDir], klein: Made):
    model, found = klein.section.model_dump() | {"chroma_path": ""}, dict[str, float]()
    for method, sections in METHODS.items():
        run_dir = make_run(method, model=model, limits={"max_steps": 1}, **sections)
        run_engine(run_dir)
        (found[method],) = losses(run_dir)
    assert found["rotation"] == found["streamed"] == pytest.approx(found["full"], rel=1e-6)
    assert 0 < abs(found["4bit"] / found["full"] - 1) < 0.05


@pytest.mark.parametrize(
    ("layers", "heads", "width", "billions"),
    [((5, 20), 24, 7680, 3.876), ((8, 24), 32, 12_288, 9.079)],
)
def test_each_preset_fits_its_card(
    tmp_path: Path, layers: tuple[int, int], heads: int, width: int, billions: float
):
    """klein 4B and 9B in 12, 16 and 24 GB, at 1024 pixels."""
    counts: dict[str, Any] = {"num_layers": layers[0], "num_single_layers": layers[1]}
    counts |= {"num_attention_heads": heads, "joint_attention_dim": width, "guidance_embeds": False}
    with torch.device("meta"):
        network = Flux2Transformer2DModel(**counts)
        path = write_hole(tmp_path / "flux-2-klein.safetensors", network)
    for size in (12, 16, 24):
        preset = next(each for each in PRESETS if each.name == f"lora-{size}gb")
        sections = {"model": {"path": str(path)}, "dataloader": {"base_resolution": [1024]}}
        config = RunConfig.model_validate({**preset.config, **sections})
        networks = Networks.from_config(config)
        assert networks.total / 1e9 == pytest.approx(billions, abs=0.001)
        plan = plan_memory(config, networks, Machine(torch.device("cuda"), size * 2**30, 32 * 2**30))
        assert plan.fits, plan.parts


def test_adapters_of_shared_modulations_are_exported(
    klein: Made, make_run: Callable[..., RunDir], tmp_path: Path
):
    """If the configuration names them; an export that the program would not read is refused."""
    model = klein.section.model_dump() | {"chroma_path": ""}
    targets = [*MODULATIONS, "time_in", "txt_in"]
    run_dir = make_run(model=model, lora=LORA | {"target_layers": targets}, limits={"max_steps": 2})
    run_engine(run_dir)
    for form in ("comfy", "kohya", "diffusers"):
        export_adapter(run_dir.path, form, tmp_path / f"{form}.safetensors")
    names = open_weights(tmp_path / "comfy.safetensors").keys()
    assert names >= {f"diffusion_model.{part}.lin.lora_A.weight" for part in MODULATIONS}
    theirs = Flux2KleinPipeline.from_pretrained(klein.section.path, local_files_only=True)
    theirs.load_lora_weights(str(tmp_path / "diffusers.safetensors"))
    adapted = [part for part in theirs.transformer.modules() if isinstance(part, BaseTunerLayer)]
    assert len(adapted) == 3 + 2 + 1
