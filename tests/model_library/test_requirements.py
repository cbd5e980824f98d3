"""Missing files of a configuration are named with choices; files of another kind are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowloom.config.run import ModelSection
from flowloom.model_library.catalog import OFFERS
from flowloom.model_library.requirements import (
    choices,
    missing,
    rounded_models,
    unfit_adapter,
    unfit_models,
    unreadable,
)
from flowloom.models.family import families
from tests.model_library.conftest import CHROMA, CLIP_L, FLUX, KNOWN, T5_XXL, VAE_4, VAE_16, write_model

WEIGHTS = ("chroma_path", "vae_path", "t5_path")


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """One of each that Chroma needs, and one of each that it does not."""
    for name, shapes in {
        "Chroma1-HD": CHROMA,
        "radiance": KNOWN["radiance"][0],
        "flux": FLUX,
        "ae": VAE_16,
        "sdxl_vae": VAE_4,
        "t5xxl": T5_XXL,
        "clip_l": CLIP_L,
    }.items():
        write_model(tmp_path / f"{name}.safetensors", shapes)
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "spiece.model").write_bytes(b"x")
    (tmp_path / "t5" / "config.json").write_text('{"d_model": 4096, "d_kv": 64}')
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip_text_model"}')
    (tmp_path / "clip" / "tokenizer.json").write_text('{"added_tokens": [{"id": 49407, "content": "</s>"}]}')
    return tmp_path


def section(models_dir: Path, **other: str) -> dict[str, Any]:
    paths = {"chroma_path": "Chroma1-HD", "vae_path": "ae", "t5_path": "t5xxl"} | other
    named = {key: str(models_dir / f"{name}.safetensors") for key, name in paths.items()}
    folder = models_dir / "t5"
    return named | {"t5_config_path": str(folder / "config.json"), "t5_tokenizer_path": str(folder)}


def test_choices_fit_each_path(models_dir: Path):
    found = {key: [path.relative_to(models_dir).as_posix() for path in paths]
             for key, paths in choices([models_dir]).items()}  # fmt: skip
    assert found == {
        "model.chroma_path": ["Chroma1-HD.safetensors"],
        "model.vae_path": ["ae.safetensors"],
        "model.t5_path": ["t5xxl.safetensors"],
        "model.t5_config_path": ["t5/config.json"],
        "model.t5_tokenizer_path": ["t5"],
        "model.clip_tokenizer_path": [],
        "model.clip_path": ["clip_l.safetensors"],
        "model.path": ["flux.safetensors", "radiance.safetensors", "Chroma1-HD.safetensors"],
        "model.text_encoder_path": [],
        "model.text_tokenizer_path": [],
    }


def test_a_complete_set_has_no_missing_files(models_dir: Path):
    assert unfit_models(section(models_dir)) == []
    assert missing(ModelSection(**section(models_dir)), [models_dir]) == []


def test_a_file_that_a_cache_replaces_is_not_missing(models_dir: Path):
    model = ModelSection(**section(models_dir))
    (models_dir / "ae.safetensors").unlink()
    assert [need.path for need in missing(model, [models_dir])] == ["model.vae_path"]
    assert missing(model, [models_dir], {"model.vae_path"}) == []


@pytest.mark.parametrize(
    ("key", "file", "message"),
    [
        ("vae_path", "sdxl_vae", "a VAE of SD 1.5 or SDXL"),
        ("vae_path", "Chroma1-HD", "is Chroma: FLUX's VAE of 16 channels, ae.safetensors goes here"),
        ("chroma_path", "flux", "FLUX.1 schnell: Chroma's network goes here"),
        ("chroma_path", "radiance", "Chroma's network goes here. Name it in model.path instead."),
        ("t5_path", "clip_l", "CLIP L"),
        ("t5_path", "ae", "is a VAE of 16 channels, as FLUX has it: T5 XXL's encoder goes here"),
        ("vae_path", "t5xxl", "is T5 XXL: FLUX's VAE of 16 channels, ae.safetensors goes here"),
        ("chroma_path", "ae", "is a VAE of 16 channels, as FLUX has it: Chroma's network goes here"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_name(key: str, file: str, message: str, models_dir: Path):
    (problem,) = unfit_models(section(models_dir, **{key: file}))
    assert problem.where == f"model.{key}"
    assert message in problem.text


def test_a_lora_is_no_base(models_dir: Path):
    layer = "diffusion_model.single_blocks.0.linear1"
    shapes = {f"{layer}.lora_A.weight": (4, 3072), f"{layer}.lora_B.weight": (21504, 4)}
    write_model(models_dir / "fox.safetensors", shapes)
    (problem,) = unfit_models(section(models_dir, chroma_path="fox"))
    assert "a LoRA, which goes on top of a base model" in problem.text


@pytest.mark.parametrize("key", WEIGHTS)
@pytest.mark.parametrize("kind", ["GGUF", "scaled"])
def test_a_quantised_file_is_refused_and_offered_nowhere(key: str, kind: str, models_dir: Path):
    shapes = {"chroma_path": CHROMA, "vae_path": VAE_16, "t5_path": T5_XXL}[key]
    path = models_dir / "small.safetensors"
    if kind == "GGUF":
        path.write_bytes(b"GGUF" + bytes(100))
    else:
        write_model(path, shapes | {"scaled_fp8": (2,)}, dtype="F8_E4M3")
    (problem,) = unfit_models(section(models_dir, **{key: "small"}))
    assert problem.where == f"model.{key}"
    expected = "not a complete GGUF file" if kind == "GGUF" else "Use the bf16 or fp16 .safetensors file"
    assert expected in problem.text
    assert "\n" not in problem.text
    assert path not in [path for paths in choices([models_dir]).values() for path in paths]


def test_plain_float8_is_accepted_and_reported_as_rounded(models_dir: Path):
    write_model(models_dir / "fp8.safetensors", CHROMA, dtype="F8_E4M3")
    given = section(models_dir, chroma_path="fp8")
    assert unfit_models(given) == []
    (note,) = rounded_models(ModelSection(**given))
    assert note.startswith("model.chroma_path: fp8.safetensors has float8 weights")
    assert "trains all of its weights from there" not in note
    (note,) = rounded_models(ModelSection(**given), trains_all=True)
    assert "and this run trains all of its weights from there" in note
    assert rounded_models(ModelSection(**section(models_dir))) == []


def test_a_diffusers_pipeline_is_chromas_network_and_nothing_else(models_dir: Path):
    folder = models_dir / "pipeline"
    for part, shapes in {"transformer": CHROMA, "vae": VAE_16, "text_encoder": T5_XXL}.items():
        write_model(folder / part / "diffusion_pytorch_model.safetensors", shapes)
    (folder / "model_index.json").write_text(
        '{"_class_name": "ChromaPipeline", "transformer": [], "vae": []}'
    )
    parts = {"vae_path": "vae", "t5_path": "text_encoder"}
    given = section(models_dir) | {key: str(folder) for key in WEIGHTS}
    assert {problem.where: problem.text for problem in unfit_models(given)} == {
        f"model.{key}": f"{folder} is a complete diffusers pipeline. Name its part: {folder / part}."
        for key, part in parts.items()
    }
    assert unfit_models(given | {key: str(folder / part) for key, part in parts.items()}) == []
    write_model(folder / "transformer" / "diffusion_pytorch_model.safetensors", FLUX)
    (problem,) = unfit_models(section(models_dir) | {"chroma_path": str(folder)})
    assert "FLUX.1 schnell: Chroma's network goes here" in problem.text


def test_a_model_is_no_adapter(models_dir: Path):
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    sdxl = {f"{layer}.lora_down.weight": (4, 2048), f"{layer}.lora_up.weight": (640, 4)}
    write_model(models_dir / "sdxl.safetensors", sdxl)
    (models_dir / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    said = {name: unfit_adapter(models_dir / name) or "" for name in
            ("Chroma1-HD.safetensors", "ae.safetensors", "sdxl.safetensors", "x.gguf")}  # fmt: skip
    assert said["Chroma1-HD.safetensors"] == "Chroma1-HD.safetensors is Chroma, not a LoRA."
    assert said["ae.safetensors"].endswith("not a LoRA.")
    assert "is a LoRA for sdxl" in said["sdxl.safetensors"]
    assert "not a complete GGUF file" in said["x.gguf"]


def test_a_path_that_is_no_file_is_not_called_unreadable():
    assert [unreadable(Path(text)) for text in ("black-forest-labs/FLUX.1-dev", "a\0b", "x" * 5000)] == [
        None
    ] * 3


def test_a_t5_of_another_size_is_reported_with_both_widths(models_dir: Path):
    write_model(models_dir / "small.safetensors", KNOWN["t5 base"][0])
    (problem,) = unfit_models(section(models_dir, t5_path="small"))
    assert problem.where == "model.t5_path"
    assert "768" in problem.text
    assert "4096" in problem.text


def test_a_damaged_file_is_a_problem_of_its_key(models_dir: Path):
    (models_dir / "ae.safetensors").write_bytes(b"short")
    (problem,) = unfit_models(section(models_dir))
    assert problem.where == "model.vae_path"
    assert "truncated" in problem.text


def test_a_missing_file_comes_with_local_choices_and_a_download(models_dir: Path):
    (models_dir / "t5" / "config.json").unlink()
    given = section(models_dir) | {"vae_path": "", "chroma_path": str(models_dir / "gone.safetensors")}
    needs = {need.path: need for need in missing(ModelSection.model_validate(given), [models_dir])}
    assert needs.keys() == {"model.chroma_path", "model.vae_path", "model.t5_config_path"}
    assert "does not exist" in needs["model.chroma_path"].reason
    assert needs["model.chroma_path"].local_paths == [models_dir / "Chroma1-HD.safetensors"]
    assert needs["model.vae_path"].offer.id == "flux-vae"
    assert needs["model.t5_config_path"].offer.id == "t5-tokenizer"


def test_every_key_has_an_offer_whose_files_it_names():
    keys = {key for offer in OFFERS for key, _ in offer.sets}
    assert keys == {f"model.{file.key}" for family in families().values() for file in family.files}
    for offer in OFFERS:
        places = {file.save_as for file in offer.files} | {
            str(Path(file.save_as).parent) for file in offer.files
        }
        assert {value for _, value in offer.sets} <= places


def test_a_diffusers_folder_is_offered_in_place_of_its_network(tmp_path: Path):
    folder = tmp_path / "fox"
    write_model(folder / "transformer" / "diffusion_pytorch_model.safetensors", FLUX)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    alone = write_model(tmp_path / "alone.safetensors", FLUX)
    assert sorted(choices([tmp_path])["model.path"]) == [alone, folder]
