"""Qwen-Image-Edit Plus against diffusers' pipeline, from reference images in the data to previews."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as first
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image

from flowloom.config.model_files import check_files, resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.datasets.load import load_dataset
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import load_encoders
from flowloom.engine.fill_cache import fill, prune
from flowloom.engine.memory import sample_tokens
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision
from flowloom.errors import DataError
from flowloom.models.families.qwen_image import FAMILY
from flowloom.models.family import Conditioning
from flowloom.run.directory import RunDir
from tests.engine.conftest import make_config, make_run, synthetic_data  # noqa: F401 -- fixtures
from tests.engine.processes import run_all_on_ranks
from tests.engine.test_fsdp import STEPS, TRAINING, assert_equal
from tests.families.qwen_image import make_edit_pipeline, save_edit_pipeline
from tests.families.test_contract import losses, tensors

CPU = torch.device("cpu")
SIDE = 64


class Edit(NamedTuple):
    pipeline: Any
    model: dict[str, Any]


@pytest.fixture(scope="module", params=[False, True], ids=["2509", "2511"])
def edit(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Edit:
    folder = tmp_path_factory.mktemp("edit")
    is_first = request.param == "first"
    pipeline = make_edit_pipeline(is_first=is_first, zero_cond_t=request.param is True)
    save_edit_pipeline(pipeline, folder)
    return Edit(pipeline, resolve_paths(ModelSection(path=str(folder)), Path()).model_dump())


@pytest.fixture(autouse=True)
def _small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", SIDE * SIDE)
    in_full = first.calculate_dimensions
    monkeypatch.setattr(first, "calculate_dimensions", lambda _, ratio: in_full(SIDE * SIDE, ratio))


def draw(width: int, height: int, seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """Six rows with none, one or two references, in two shapes."""
    folder = tmp_path / "edits"
    (folder / "before").mkdir(parents=True)
    for i in range(3):
        draw(*((64, 64) if i else (96, 48)), i).save(folder / "before" / f"{i}.png")
    rows: list[dict[str, Any]] = []
    for i in range(6):
        draw(64, 64, 10 + i).save(folder / f"{i}.png")
        row = {"filename": f"{i}.png", "caption_or_tags": f"number {i}", "width": 64, "height": 64}
        rows.append(row | {"references": [f"before/{(i + j) % 3}.png" for j in range(i % 3)]})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "jsonl_metadata_path": str(folder / "data.jsonl"),
        "image_folder_path": str(folder),
        "reference_resolution": SIDE,
        "shuffle_tags": False,
        "uncond_percentage": 0.3,
    }


@pytest.mark.parametrize("edit", ["first", False, True], indirect=True, ids=["first", "2509", "2511"])
def test_an_edited_image_is_the_pipelines(edit: Edit, tmp_path: Path):
    is_first = isinstance(edit.pipeline, first.QwenImageEditPipeline)
    sizes = ((64, 64), (96, 32))[: 1 if is_first else 2]
    images = [draw(*size, seed) for seed, size in enumerate(sizes)]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    section = ModelSection(**edit.model)
    config = RunConfig.model_validate({"model": edit.model, "dataloader": {"reference_resolution": SIDE}})
    encoders = load_encoders(section, config, CPU)
    network = FAMILY.load_network(section.network_path, CPU, torch.float32)
    made = SampleGenerator(network, encoders, Precision(CPU, torch.float32, torch.float32))
    params = SamplingParams(
        64, 32, 3, cfg=3.0, negative="blurry", references=tuple(str(path) for path in paths)
    )
    found = np.asarray(made.generate(["swap the colours"], [5], params)[0])
    expected = edit.pipeline(
        images,
        "swap the colours",
        negative_prompt="blurry",
        true_cfg_scale=3.0,
        width=64,
        height=32,
        num_inference_steps=3,
        latents=torch.randn(8, 64, generator=generator(5, "picture"))[None],
        output_type="np",
    ).images[0]
    assert expected.std() > 0.01
    assert np.abs(found - expected * 255).max() < 0.51


def test_samples_with_different_references_share_a_batch(edit: Edit):
    network = FAMILY.load_network(ModelSection(**edit.model).network_path, CPU, torch.float32)
    draws = torch.Generator().manual_seed(2)
    grids = [[], [(8, 8)], [(4, 8), (8, 8)], [(8, 8)]]
    texts: list[Conditioning] = []
    for own in grids:
        count = sum(height * width // 4 for height, width in own)
        texts.append(
            {
                "states": torch.randn(3 + len(own), 32, generator=draws),
                "references": torch.randn(count, 64, generator=draws),
                "reference_grids": torch.tensor(own).reshape(-1, 2).long(),
            }
        )
    x, level = torch.randn(4, 16, 64, generator=draws), torch.tensor([0.1, 0.4, 0.6, 0.9])
    together = FAMILY.predict(network, x, level, texts, (8, 8))
    for i in range(4):
        cut = slice(i, i + 1)
        alone = FAMILY.predict(network, x[cut], level[cut], texts[cut], (8, 8))
        torch.testing.assert_close(together[cut], alone, rtol=0, atol=1e-5)
    together.square().mean().backward()


@pytest.mark.parametrize("edit", [True], indirect=True, ids=["2511"])
def test_caches_and_resume_change_nothing(
    edit: Edit,
    data: dict[str, Any],
    make_run: Callable[..., RunDir],  # noqa: F811
    make_config: Callable[..., RunConfig],  # noqa: F811
    tmp_path: Path,
):
    from flowloom.run.resume import change_by_flags

    cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache"), "dtype": "fp32"}
    sections: dict[str, Any] = {"model": edit.model | {"chroma_path": ""}, "dataloader": data}
    sections |= {"lora": {"rank": 4, "alpha": 8}, "training": {"lr": 0.02}}
    whole, parts = make_run("whole", **sections), make_run("parts", **sections, cache=cache)
    filled = fill(make_config(**sections, cache=cache))
    assert (filled.images, filled.skipped) == (6, [])
    for run_dir, ends in ((whole, [3]), (parts, [2, 3])):
        for end in ends:
            change_by_flags(run_dir, [("limits.max_steps", str(end))])
            run_engine(run_dir)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 3
    expected, found = tensors(whole), tensors(parts)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    # Everything that was used had been filled, and nothing of it is dropped.
    config = make_config(**sections, cache=cache)
    assert fill(config).images == fill(config).captions == 0
    assert prune([config]).dropped == 0
    # Another reference image is noticed by its content; rows of a missing one are skipped.
    before = Path(data["image_folder_path"], "before")
    draw(64, 64, 99).save(before / "1.png")
    assert fill(config).captions == 3
    (before / "1.png").unlink()
    skipping = make_config(**sections, cache=cache, limits={"skipped_percentage": 1.0})
    skipped = fill(skipping).skipped
    assert sorted(row.line for row in skipped) == [2, 5]
    assert "before/1.png" in skipped[0].reason


def test_estimates_count_the_tokens_of_references(
    edit: Edit,
    data: dict[str, Any],
    make_config: Callable[..., RunConfig],  # noqa: F811
):
    """16 tokens of an image of 64 x 64 pixels, and of each of two references at most."""
    sections: dict[str, Any] = {"model": edit.model | {"chroma_path": ""}, "batching": {"batch_tokens": 90}}
    config = make_config(**sections, dataloader=data)
    assert sample_tokens(config)[0] == 16 * 3
    costs = load_dataset(config).batching.row_costs
    assert costs is not None
    assert (costs - costs[0]).tolist() == [0, 16, 32] * 2


def test_another_family_refuses_references(
    data: dict[str, Any],
    make_run: Callable[..., RunDir],  # noqa: F811
):
    with pytest.raises(DataError, match=r"rows have references, images to edit, which Chroma does not read"):
        run_engine(make_run(dataloader=data))


@pytest.mark.slow
@pytest.mark.parametrize("edit", [False], indirect=True, ids=["2509"])
def test_diffusers_generates_the_edit_that_was_learned(
    edit: Edit,
    make_run: Callable[..., RunDir],  # noqa: F811
    tmp_path: Path,
):
    """One edit of one image, learned until diffusers' pipeline makes its latents from noise."""
    draw(64, 64, 0).save(tmp_path / "before.png")
    draw(64, 64, 1).save(tmp_path / "after.png")
    row = {"filename": "after.png", "caption_or_tags": "edit", "width": 64, "height": 64}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(row | {'references': ['before.png']})}\n" * 4)
    data = {"jsonl_metadata_path": str(tmp_path / "data.jsonl"), "image_folder_path": str(tmp_path)}
    data |= {"reference_resolution": SIDE, "uncond_percentage": 0.0, "shuffle_tags": False, "batch_size": 4}
    with torch.no_grad():
        edit.pipeline.vae.encoder.conv_out.weight.mul_(8)  # random latents hardly vary, see the contract
    save_edit_pipeline(edit.pipeline, Path(edit.model["path"]))
    run_dir = make_run(
        model=edit.model | {"chroma_path": ""},
        dataloader=data,
        training={"lr": 4e-3, "warmup_steps": 10, "weight_decay": 0.0, "train_minibatch": 4},
        limits={"max_steps": 200},
        objective={"noise_level": {"kind": "uniform"}, "lowercase_percentage": 0.0},
        lr_schedule={"kind": "cosine"},
        cache={"latents": "memory", "text": "memory"},
    )
    run_engine(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    (weights,) = (path for path in checkpoint.glob("*.safetensors") if "optimizer" not in path.name)
    edit.pipeline.transformer.load_state_dict(dict(FAMILY.open_weights(weights)))
    codec = FAMILY.load_codec(ModelSection(**edit.model), CPU, torch.float32)
    pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / "after.png")).copy())
    wanted = FAMILY.pack(codec.encode(pixels.permute(2, 0, 1)[None] / 127.5 - 1))
    found = edit.pipeline(
        [Image.open(tmp_path / "before.png")],
        "edit",
        true_cfg_scale=1.0,
        width=64,
        height=64,
        num_inference_steps=8,
        latents=torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)),
        output_type="latent",
    ).images
    assert (found - wanted).square().mean() < 0.8 * wanted.var()


@pytest.mark.slow
@pytest.mark.parametrize("edit", [False], indirect=True, ids=["2509"])
def test_sharded_and_streamed_runs_equal_that_of_one_rank(
    edit: Edit,
    data: dict[str, Any],
    make_run: Callable[..., RunDir],  # noqa: F811
):
    """All weights: the last block's text branch gets no gradient on any rank."""
    sections: dict[str, Any] = {"model": edit.model | {"chroma_path": ""}, "dataloader": data}
    sections |= {"training": TRAINING, "limits": {"max_steps": STEPS}}
    alone = make_run("alone", **sections)
    sharded = make_run("sharded", **sections, parallel={"num_threads": 1, "strategy": "fsdp"})
    streamed = make_run("streamed", **sections, optimizer={"device": "cpu"}, memory={"streamed_blocks": 2})
    for run_dir in (alone, streamed):
        run_engine(run_dir)
    assert run_all_on_ranks([sharded], 2) == 0
    assert_equal(alone, sharded)
    assert losses(streamed) == losses(alone)


def test_previews_name_files_that_exist_for_a_model_that_edits(edit: Edit, tmp_path: Path):
    previews = {"prompts": ["x"], "reference_paths": ["gone.png"]}
    problems = check_files(
        resolve_paths(
            RunConfig.model_validate(
                {"model": edit.model, "inference": previews, "objective": {"mask_mode": "flow_union"}}
            ),
            tmp_path,
        )
    )
    found = {problem.where: problem.message for problem in problems}
    assert f"{Path.cwd() / 'gone.png'} does not exist." in found["inference.reference_paths.0"]
    assert "set it to per_sample" in found["objective.mask_mode"]
    chroma = RunConfig.model_validate({"inference": previews})
    found = {problem.where: problem.message for problem in check_files(chroma)}
    assert "does not edit images" in found["inference.reference_paths"]
