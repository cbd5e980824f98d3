"""Model files by HTTP: listed by what they are, missing ones with a download, wrong ones refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.model_library.conftest import CHROMA, T5_XXL, VAE_4, VAE_16, write_model
from tests.server.conftest import Studio


@pytest.fixture
def models_dir(one_studio: Studio, tmp_path: Path) -> Path:
    """The studio's folder for models, with one of each."""
    folder = one_studio.home / "models"
    write_model(folder / "chroma/Chroma1-Base.safetensors", CHROMA)
    write_model(folder / "chroma/Chroma1-HD.safetensors", CHROMA)
    write_model(folder / "chroma/chroma-unlocked-v9.safetensors", CHROMA)
    write_model(folder / "chroma/chroma-unlocked-v48.safetensors", CHROMA)
    write_model(folder / "vae/ae.safetensors", VAE_16)
    write_model(folder / "vae/sdxl_vae.safetensors", VAE_4)
    write_model(folder / "t5xxl/t5xxl_fp16.safetensors", T5_XXL, dtype="F16")
    layer = "lora_unet_single_blocks_0_linear1"
    shapes = {f"{layer}.lora_down.weight": (4, 3072), f"{layer}.lora_up.weight": (21504, 4)}
    write_model(folder / "loras/fox.safetensors", shapes, {"modelspec.architecture": "chroma/lora"})
    (folder / "old.ckpt").write_bytes(b"never opened")
    (folder / "broken.safetensors").write_bytes(b"x")
    secret = write_model(tmp_path / "secret.safetensors", CHROMA)
    (folder / "link.safetensors").unlink(missing_ok=True)
    (folder / "link.safetensors").symlink_to(secret)
    return folder


def test_models_are_listed_by_kind(one_studio: Studio, models_dir: Path):
    listed = one_studio.get("/api/models", root="models")
    models = {Path(one["path"]).relative_to(models_dir).as_posix(): one for one in listed["models"]}
    assert "link.safetensors" not in models, "it leads out of the folders"
    assert models["vae/ae.safetensors"]["architecture"] == "vae-flux"
    assert models["t5xxl/t5xxl_fp16.safetensors"]["precision"] == "F16"
    assert models["old.ckpt"]["kind"] == "pickle"
    assert "truncated" in models["broken.safetensors"]["problem"]
    lora = models["loras/fox.safetensors"]
    assert (lora["adapter"]["rank"], lora["adapter"]["base"], lora["adapter"]["naming"]) == (
        4,
        "chroma",
        "kohya",
    )
    only = one_studio.get("/api/models", root="models", kind="lora")["models"]
    assert [one["name"] for one in only] == ["fox.safetensors"]


def test_versions_of_a_family_stand_side_by_side(one_studio: Studio, models_dir: Path):
    families = {one["name"]: one for one in one_studio.get("/api/models", root="models")["families"]}
    names = [Path(path).stem for path in families["Chroma"]["paths"]]
    assert names == ["chroma-unlocked-v48", "chroma-unlocked-v9", "Chroma1-Base", "Chroma1-HD"]


def details(studio: Studio, path: str) -> httpx.Response:
    return studio.http.get("/api/models/details", params={"root": "models", "path": path})


def test_a_header_is_shown(one_studio: Studio, models_dir: Path):
    found = details(one_studio, "loras/fox.safetensors").json()
    assert found["metadata"] == {"modelspec.architecture": "chroma/lora"}
    assert found["tensors"][0] == {
        "name": "lora_unet_single_blocks_0_linear1.lora_down.weight",
        "dtype": "BF16",
        "shape": [4, 3072],
    }
    assert details(one_studio, "broken.safetensors").json()["num_tensors"] == 0
    assert details(one_studio, "gone.safetensors").status_code == 404
    assert details(one_studio, "../x").status_code == 403
    assert details(one_studio, "link.safetensors").status_code == 403


def test_an_unknown_root_is_refused(one_studio: Studio):
    assert one_studio.http.get("/api/models", params={"root": "nowhere"}).status_code == 404


def test_flow_is_given_choices_that_fit(one_studio: Studio, models_dir: Path):
    found = one_studio.get("/api/flow/models")
    assert str(models_dir / "chroma/Chroma1-HD.safetensors") in found["model.chroma_path"]
    assert str(models_dir / "vae/ae.safetensors") in found["model.vae_path"]
    assert str(models_dir / "vae/sdxl_vae.safetensors") not in found["model.vae_path"]
    assert str(models_dir / "t5xxl/t5xxl_fp16.safetensors") in found["model.t5_path"]
    assert found["model.t5_config_path"]
    assert found["model.t5_tokenizer_path"]


def test_a_model_of_another_kind_is_refused_at_its_key(
    one_studio: Studio, models_dir: Path, tiny_config: Callable[..., dict[str, Any]]
):
    config = tiny_config(model={"vae_path": str(models_dir / "vae/sdxl_vae.safetensors")})
    verdict = one_studio.post("/api/flow/config", {"config": config})
    (problem,) = verdict["problems"]
    assert problem["where"] == "/config/model/vae_path"
    assert "SDXL" in problem["detail"]
    assert "ae.safetensors goes here" in problem["detail"]
    assert one_studio.http.post("/api/flow/train/start", json={"config": config}).status_code == 422


def test_missing_files_of_a_configuration_come_with_their_download(
    one_studio: Studio, models_dir: Path, tiny_config: Callable[..., dict[str, Any]]
):
    config = tiny_config(model={"vae_path": "", "t5_tokenizer_path": str(models_dir / "t5xxl")})
    lacking = one_studio.post("/api/models/missing", {"config": config})
    needs = {need["path"]: need for need in lacking["missing"]}
    assert needs.keys() == {"model.vae_path", "model.t5_tokenizer_path"}
    vae = needs["model.vae_path"]
    assert str(models_dir / "vae/ae.safetensors") in vae["local_paths"]
    assert vae["offer"]["is_here"]
    assert vae["offer"]["keys"] == {"model.vae_path": str(models_dir / "vae/ae.safetensors")}
    checked = one_studio.post("/api/tasks/download/config", lacking["download"])
    assert checked["is_valid"], checked
    names = [item["name"] for item in lacking["download"]["config"]["items"]]
    assert names == ["ae.safetensors", "spiece.model", "config.json"]


def test_a_complete_configuration_has_no_missing_files(
    one_studio: Studio, tiny_config: Callable[..., dict[str, Any]]
):
    assert one_studio.post("/api/models/missing", {"config": tiny_config()}) == {
        "encoders": ["model.vae_path", "model.t5_path"],
        "missing": [],
        "download": None,
    }


@pytest.mark.parametrize(
    "model", [{"vae_path": 3}, {"no_such": 1}, "text", {"chroma_path": "/etc/passwd"}, {"vae_path": "a\0b"}]
)
def test_a_model_section_that_is_none_is_explained(one_studio: Studio, model: Any):
    answer = one_studio.http.post("/api/models/missing", json={"config": {"model": model}})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]


def test_every_offer_is_a_download_that_can_start(one_studio: Studio):
    for offer in one_studio.get("/api/models/offers"):
        assert one_studio.post("/api/tasks/download/config", offer["download"])["is_valid"], offer


def test_a_sum_that_a_run_made_is_shown_in_the_list(one_studio: Studio, models_dir: Path):
    path = models_dir / "loras" / "fox.safetensors"
    run = one_studio.post("/api/tasks/hash/start", {"config": {"paths": [str(path)]}})
    assert one_studio.wait(run["id"])["state"] == "finished"
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    (lora,) = one_studio.get("/api/models", root="models", kind="lora")["models"]
    assert lora["sha256"] == wanted
    path.touch()
    (lora,) = one_studio.get("/api/models", root="models", kind="lora")["models"]
    assert lora["sha256"] is None, "it was changed since"


@pytest.mark.slow
def test_images_and_exports_are_served_by_the_routes_of_runs(
    studio: Studio, tiny_config: Callable[..., dict[str, Any]], tmp_path: Path
):
    config = tiny_config(lora={"rank": 2, "alpha": 2}, limits={"max_steps": 1})
    studio.post("/api/flow/train/start", {"config": config, "name": "fox"})
    assert studio.wait("fox")["state"] == "finished"
    source = str(studio.home / "runs" / "fox")
    config = {
        "source_path": source,
        "prompts": ["red bar", "blue bar"],
        "width": 32,
        "height": 32,
        "steps": 1,
        "grid": {"cfg": [1.0, 2.0]},
        "parallel": {"device": "cpu", "num_threads": 1},
    }
    sampled = studio.post("/api/tasks/sample/start", {"config": config})["id"]
    exported = studio.post("/api/tasks/export/start", {"config": {"source_path": source, "form": "kohya"}})[
        "id"
    ]
    assert studio.wait(sampled)["state"] == "finished"
    listed = studio.get(f"/api/runs/{sampled}/samples")
    assert listed["total"] == 4
    assert [(one["prompt"], one["settings"]["cfg"], one["step"]) for one in listed["samples"]] == [
        ("red bar", 1.0, 0), ("red bar", 2.0, 0), ("blue bar", 1.0, 0), ("blue bar", 2.0, 0),
    ]  # fmt: skip
    assert studio.http.get(listed["samples"][0]["url"]).content.startswith(b"\x89PNG")
    assert studio.wait(exported)["state"] == "finished"
    (saved,) = studio.get(f"/api/runs/{exported}/checkpoints")["checkpoints"]
    assert saved["name"] == "fox-step_00000001-kohya.safetensors"
    content = studio.http.get(saved["files"][0]["url"]).content
    assert len(content) == saved["size"]
    (mine,) = studio.get("/api/models", root="runs", kind="lora")["models"][:1]
    assert mine["adapter"]["base"] == "chroma"


def delete(studio: Studio, root: str, path: str, **more: Any) -> int:
    return studio.http.delete("/api/models/file", params={"root": root, "path": path} | more).status_code


def test_a_model_is_deleted_unless_a_run_needs_it(studio: Studio, tiny_config: Callable[..., dict[str, Any]]):
    folder = studio.home / "models"
    chroma = folder / "chroma.safetensors"
    chroma.parent.mkdir(exist_ok=True)
    config = tiny_config(limits={"max_steps": 100_000})
    chroma.write_bytes(Path(config["model"]["chroma_path"]).read_bytes())
    config["model"]["chroma_path"] = str(chroma)
    studio.post("/api/flow/train/start", {"config": config, "name": "fox"})
    for force in (False, True):
        assert delete(studio, "models", "chroma.safetensors", force=force) == 409
    studio.wait("fox", "running")
    studio.post("/api/runs/fox/kill")
    assert studio.wait("fox")["can_resume"]
    params = {"root": "models", "path": "chroma.safetensors"}
    refused = studio.http.delete("/api/models/file", params=params).json()
    assert refused["type"] == "urn:flowloom:needed-to-resume"
    assert "fox" in refused["detail"]
    assert "force" in refused["hint"]
    assert chroma.exists()
    assert delete(studio, "models", "chroma.safetensors", force=True) == 204
    assert not chroma.exists()
    assert delete(studio, "models", "chroma.safetensors") == 404


def test_only_model_files_are_deleted_here(one_studio: Studio, models_dir: Path):
    for name in ("x.part", "x.part.json", "notes.txt"):
        (models_dir / name).write_text("x")
    assert delete(one_studio, "models", "x.part") == 204
    assert not (models_dir / "x.part.json").exists()
    assert delete(one_studio, "models", "notes.txt") == 404
    assert delete(one_studio, "models", "chroma") == 404
    assert delete(one_studio, "models", "link.safetensors") == 403
    assert delete(one_studio, "runs", "fox/checkpoints/x.safetensors") == 404


NASTY = [
    "\ud800",
    "a" * 5000,
    "a/" * 3000,
    "\x7f\x01",
    "~nobody/x",
    "C:\\x",
    "%00",
    "?",
    "ſ́" * 50,
    " ",
    ".",
    "/",
]


@pytest.mark.parametrize("is_inside", [True, False])
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_no_text_in_place_of_a_path_is_a_fault(one_studio: Studio, text: str, is_inside: bool):
    text = f"{one_studio.home}/models/{text}" if is_inside else text
    tasks: dict[str, dict[str, Any]] = {
        "download": {
            "target_dir": text,
            "items": [{"url": text, "save_as": text}, {"repo": "a/b", "name": text}],
        },
        "hash": {"paths": [text]},
        "export": {"source_path": text, "out_path": text},
        "merge": {"source_path": text, "base_path": text},
        "sample": {"prompts": [text], "source_path": text, "loras": [{"lora_path": text}]},
    }
    model = dict.fromkeys(("chroma_path", "vae_path", "t5_path", "t5_config_path", "t5_tokenizer_path"), text)
    requests = [(f"/api/tasks/{name}/config", config) for name, config in tasks.items()]
    requests += [("/api/models/missing", {"model": model}), ("/api/flow/config", {"model": model})]
    requests += [
        ("/api/tasks/hash/config", {text: text}),
        ("/api/flow/config", {text: text, "model": {text: 1}}),
    ]
    for path, config in requests:
        body = json.dumps({"config": config})
        answer = one_studio.http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 500, (path, answer.text)
    if "\ud800" not in text:
        assert details(one_studio, text).status_code < 500
        assert one_studio.http.get("/api/models", params={"root": text}).status_code < 500
