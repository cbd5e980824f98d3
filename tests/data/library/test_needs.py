"""What a configuration lacks is named, with what would do; a file of another kind is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowloom.data.library.catalogue import OFFERS
from flowloom.data.library.needs import WANTED, choices, missing, unfit_models
from flowloom.spec.run import ModelSection
from tests.data.library.conftest import CHROMA, CLIP_L, FLUX, KNOWN, T5_XXL, VAE_4, VAE_16, write_model


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


def test_choices_are_what_fits_each_path(models_dir: Path):
    found = {key: [path.relative_to(models_dir).as_posix() for path in paths]
             for key, paths in choices([models_dir]).items()}  # fmt: skip
    assert found == {
        "model.chroma_path": ["Chroma1-HD.safetensors"],
        "model.vae_path": ["ae.safetensors"],
        "model.t5_path": ["t5xxl.safetensors"],
        "model.t5_config_path": ["t5/config.json"],
        "model.t5_tokenizer_path": ["t5"],
    }


def test_a_whole_set_lacks_nothing(models_dir: Path):
    assert unfit_models(section(models_dir)) == []
    assert missing(ModelSection(**section(models_dir)), [models_dir]) == []


@pytest.mark.parametrize(
    ("key", "file", "words"),
    [
        ("vae_path", "sdxl_vae", "a VAE of SD 1.5 or SDXL"),
        ("vae_path", "Chroma1-HD", "is Chroma: FLUX's VAE of 16 channels, ae.safetensors goes here"),
        ("chroma_path", "flux", "FLUX.1 schnell: Chroma's network goes here"),
        ("chroma_path", "radiance", "works on pixels"),
        ("t5_path", "clip_l", "CLIP L"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_name(key: str, file: str, words: str, models_dir: Path):
    (problem,) = unfit_models(section(models_dir, **{key: file}))
    assert problem.path == f"model.{key}"
    assert words in problem.message


def test_a_lora_is_no_base(models_dir: Path):
    layer = "diffusion_model.single_blocks.0.linear1"
    shapes = {f"{layer}.lora_A.weight": (4, 3072), f"{layer}.lora_B.weight": (21504, 4)}
    write_model(models_dir / "fox.safetensors", shapes)
    (problem,) = unfit_models(section(models_dir, chroma_path="fox"))
    assert "a LoRA, which goes on top of a base model" in problem.message


def test_a_t5_of_another_size_is_told_by_both_widths(models_dir: Path):
    write_model(models_dir / "small.safetensors", KNOWN["t5 base"][0])
    (problem,) = unfit_models(section(models_dir, t5_path="small"))
    assert problem.path == "model.t5_path"
    assert "768" in problem.message
    assert "4096" in problem.message


def test_a_damaged_file_is_a_problem_of_its_key(models_dir: Path):
    (models_dir / "ae.safetensors").write_bytes(b"short")
    (problem,) = unfit_models(section(models_dir))
    assert problem.path == "model.vae_path"
    assert "cut short" in problem.message


def test_what_lacks_comes_with_what_is_here_and_a_download(models_dir: Path):
    (models_dir / "t5" / "config.json").unlink()
    given = section(models_dir) | {"vae_path": "", "chroma_path": str(models_dir / "gone.safetensors")}
    needs = {need.path: need for need in missing(ModelSection(**given), [models_dir])}
    assert needs.keys() == {"model.chroma_path", "model.vae_path", "model.t5_config_path"}
    assert "does not exist" in needs["model.chroma_path"].why
    assert needs["model.chroma_path"].here == [models_dir / "Chroma1-HD.safetensors"]
    assert needs["model.vae_path"].offer.id == "flux-vae"
    assert needs["model.t5_config_path"].offer.id == "t5-tokenizer"


def test_every_key_has_an_offer_whose_files_it_names():
    keys = {key for offer in OFFERS for key, _ in offer.sets}
    assert keys == {f"model.{key}" for key in (*WANTED, "t5_config_path", "t5_tokenizer_path")}
    for offer in OFFERS:
        places = {file.save_as for file in offer.files} | {
            str(Path(file.save_as).parent) for file in offer.files
        }
        assert {value for _, value in offer.sets} <= places
