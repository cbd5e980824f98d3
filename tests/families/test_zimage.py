"""Z-Image beyond the contract of all families: guidance, released files, Turbo, names of adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Lumina2Transformer2DModel, ZImagePipeline, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
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
from flowloom.models.adapters.merge import merge
from flowloom.models.adapters.read import load_onto
from flowloom.models.families.zimage import FAMILY
from flowloom.models.family import detect, family_for
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.patches import unpack
from flowloom.nn.recompute import Recompute
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from tests.engine.conftest import make_config, make_run, synthetic_data  # noqa: F401 -- fixtures
from tests.engine.processes import run_all_on_ranks
from tests.engine.test_memory_plan import CARDS, GIB, write_hole
from tests.families.lumina2 import TinyLumina2
from tests.families.zimage import TinyZImage, in_comfy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("z-image")
    TinyZImage().make(folder, folder).save_pretrained(folder)
    loaded = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def section(pipeline: Any) -> ModelSection:
    return resolve_paths(ModelSection(path=str(pipeline.config._name_or_path)), Path())


def predicted(network: Any) -> Tensor:
    """The velocity of two samples, one with a text of 32 tokens, one with a shorter text."""
    draw = torch.Generator().manual_seed(3)
    x, level = torch.randn(2, 24, 64, generator=draw), torch.tensor([0.2, 0.9])
    texts = [{"states": torch.randn(length, 32, generator=draw)} for length in (32, 7)]
    return FAMILY.predict(network, x, level, texts, (12, 8))


def test_guidance_is_the_pipelines_and_one_more(pipeline: Any, section: ModelSection):
    network = FAMILY.load_network(section.network_path, CPU, torch.float32)
    encoders = load_encoders(section, RunConfig(model=section), CPU)
    made = SampleGenerator(network, encoders, Precision(CPU, torch.float32, torch.float32))
    ours = np.asarray(made.generate(["bar"], [7], SamplingParams(64, 64, 3, cfg=4.0))[0])
    noise = unpack(torch.randn(1, 16, 64, generator=generator(7, "picture")), 8, 8)
    arguments: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 3, "latents": noise}
    theirs = pipeline("bar", **arguments, guidance_scale=3.0, output_type="np").images[0]
    assert np.abs(ours - theirs * 255).max() < 0.51


@pytest.mark.parametrize("recomputed", [(4, 0), (0, 4), (2, 1)])
def test_recomputed_blocks_change_no_gradient(section: ModelSection, recomputed: tuple[int, int]):
    networks = [FAMILY.load_network(section.network_path, CPU, torch.float32) for _ in range(2)]
    FAMILY.recompute(networks[1], Recompute(*recomputed))
    for network in networks:
        predicted(network).square().mean().backward()
    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_a_single_file_is_converted_as_by_diffusers(pipeline: Any, tmp_path: Path):
    state, path = in_comfy(pipeline.transformer.state_dict()), tmp_path / "z_image_bf16.safetensors"
    save_weights(path, state, {})
    assert detect(path) is FAMILY
    found, expected = FAMILY.open_weights(path), convert_z_image_transformer_checkpoint_to_diffusers(state)
    assert found.keys() == expected.keys() == pipeline.transformer.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "is_turbo"),
    [
        ("z_image_bf16", False),
        ("z_image_turbo_bf16", True),
        ("Z-Image-Turbo", True),
        ("z_image_de_turbo_v1_bf16", False),
        ("Z-Image-De-Turbo", False),
    ],
)
def test_turbo_is_recognized_by_its_name_and_warned_about(tmp_path: Path, name: str, is_turbo: bool):
    section = ModelSection(path=str(tmp_path / f"{name}.safetensors"))
    assert [note.count("distilled") for note in FAMILY.notes(section)] == ([1] if is_turbo else [])


def test_turbo_is_recognized_by_the_scheduler_of_its_folder(tmp_path: Path, section: ModelSection):
    settings = json.loads((Path(section.path) / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings | {"shift": 3.0}))
    assert FAMILY.notes(ModelSection(path=str(tmp_path)))
    assert not FAMILY.notes(section)


METHODS: dict[str, dict[str, Any]] = {
    "keywords": {
        "training": {"trained_layer_keywords": ["layers.1.attention.qkv"]},
        "method": {"kind": "keywords"},
    },
    "rotation": {"training": {"change_layer_every": 1, "trained_single_blocks": 1}},
}
TRAINED = {"keywords": r"layers\.1\.attention\.to_[qkv]", "rotation": r"layers\.\d|all_|cap_embedder"}


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_chosen_by_the_checkpoints_names(
    make_run: Callable[..., RunDir],  # noqa: F811
    section: ModelSection,
    method: str,
):
    run_dir = make_run(
        model=section.model_dump() | {"chroma_path": ""}, limits={"max_steps": 1}, **METHODS[method]
    )
    run_engine(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    found = FAMILY.open_weights(checkpoint / "model.safetensors")
    base = FAMILY.open_weights(section.network_path)
    changed = {name.rpartition(".")[0] for name in base if not torch.equal(base[name], found[name])}
    assert changed
    assert all(re.match(TRAINED[method], name) for name in changed)


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_diffusers_reads_the_names_of_other_programs(
    make_run: Callable[..., RunDir],  # noqa: F811
    section: ModelSection,
    tmp_path: Path,
    kind: str,
):
    lora = {"rank": 4, "alpha": 8}
    sections = {"lora": lora, "method": {"kind": kind}, "training": {"lr": 0.02}}
    run_dir = make_run(model=section.model_dump() | {"chroma_path": ""}, limits={"max_steps": 2}, **sections)
    run_engine(run_dir)
    for form in ("comfy",) if kind == "lokr" else ("comfy", "kohya"):
        exported = tmp_path / f"{form}.safetensors"
        export_adapter(run_dir.path, form, exported)
        assert all(name.startswith(("diffusion_model.", "lora_unet_")) for name in open_weights(exported))
        network = FAMILY.load_network(section.network_path, CPU, torch.float32)
        load_onto(network, exported)
        theirs = ZImagePipeline.from_pretrained(section.path, local_files_only=True)
        theirs.load_lora_weights(str(exported))
        parts = (re.split(r"\.lo(?:ra|kr)_", name) for name, _ in theirs.transformer.named_parameters())
        assert len({layer for layer, *is_adapted in parts if is_adapted}) == 4 * 7
        with torch.no_grad():
            ours, expected = predicted(network), predicted(theirs.transformer)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_training_adapter_is_merged_as_by_diffusers(
    make_run: Callable[..., RunDir],  # noqa: F811
    pipeline: Any,
    section: ModelSection,
    tmp_path: Path,
):
    """The file that Turbo is trained on: see docs/models.md."""
    run_dir = make_run(
        model=section.model_dump() | {"chroma_path": ""},
        lora={"rank": 4, "alpha": 4},
        limits={"max_steps": 1},
        training={"lr": 0.02},
    )
    run_engine(run_dir)
    adapter, turbo = tmp_path / "training_adapter.safetensors", tmp_path / "z_image_turbo.safetensors"
    export_adapter(run_dir.path, "comfy", adapter)
    save_weights(turbo, in_comfy(pipeline.transformer.state_dict()), {})
    merge(turbo, adapter, tmp_path / "z_image_de_turbo.safetensors")
    merged = ModelSection(path=str(tmp_path / "z_image_de_turbo.safetensors"))
    assert family_for(merged) is FAMILY
    assert not FAMILY.notes(merged)
    theirs = ZImagePipeline.from_pretrained(section.path, local_files_only=True)
    theirs.load_lora_weights(str(adapter))
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    found = FAMILY.open_weights(Path(merged.path))
    for name, weight in theirs.transformer.state_dict().items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)


RELEASES = {
    "z-image": (ZImageTransformer2DModel, {}),
    "lumina2": (Lumina2Transformer2DModel, {"cap_feat_dim": 2304}),
}


@pytest.mark.parametrize("release", RELEASES)
def test_the_lora_presets_fit_the_released_networks(tmp_path: Path, release: str):
    kind, sizes = RELEASES[release]
    with torch.device("meta"):
        model = {"path": str(write_hole(tmp_path / f"{release}.safetensors", kind(**sizes)))}
    for size in (12, 16, 24):
        sections = dict(CARDS[f"lora-{size}gb"].config) | {"model": model}
        networks = Networks.from_config(RunConfig.model_validate(sections))
        for side in (512, 1024):
            config = RunConfig.model_validate(sections | {"dataloader": {"base_resolution": [side]}})
            plan = plan_memory(config, networks, Machine(torch.device("cuda"), size * GIB, 64 * GIB))
            assert plan.fits, (size, side, plan.parts, plan.host_parts)


@pytest.mark.slow
def test_sharded_runs_equal_those_of_one_rank(make_config: Callable[..., RunConfig], tmp_path: Path):  # noqa: F811
    """Learned padding tokens, each one row, and refiners outside of the main blocks."""
    runs: dict[tuple[str, int], RunDir] = {}
    for given in (TinyZImage(), TinyLumina2()):
        name = given.family.name
        given.make(tmp_path, tmp_path).save_pretrained(tmp_path / name)
        section = ModelSection(path=str(tmp_path / name), **given.model)
        model = resolve_paths(section, Path()).model_dump() | {"chroma_path": ""}
        for num_ranks in (1, 2):
            parallel = {"device": "cpu", "num_threads": 1, "strategy": "fsdp" if num_ranks > 1 else "ranks"}
            config = make_config(
                model=model, parallel=parallel, memory={"checkpointed_blocks": 2}, limits={"max_steps": 2}
            )
            run_dir = runs[name, num_ranks] = RunDir.create(f"{name}-{num_ranks}", tmp_path)
            run_dir.write_run(config, "a test")
    for num_ranks in (1, 2):
        assert run_all_on_ranks([run for (_, size), run in runs.items() if size == num_ranks], num_ranks) == 0
    for name in ("z-image", "lumina2"):
        one, two = (
            [event["loss"] for event in read_events(runs[name, size].events_jsonl) if event["kind"] == "step"]
            for size in (1, 2)
        )
        assert len(one) == 2
        assert one == pytest.approx(two, rel=1e-5)
