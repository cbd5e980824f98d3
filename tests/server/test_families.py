"""FLUX.1 in the studio: recognized in the library, checked before the start, and trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.server.conftest import PATIENCE_S, Studio


def test_flux1_is_recognized_checked_and_trained_in_the_studio(
    studio_at: Callable[..., Studio], tiny_config: Callable[..., dict[str, Any]], tiny_flux1_dir: Path
):
    studio = studio_at("home", "--root", f"flux1={tiny_flux1_dir}").start()
    studio.http.timeout = PATIENCE_S
    models = {model["path"]: model for model in studio.get("/api/models")["models"]}
    assert models[str(tiny_flux1_dir)]["family"] == "FLUX.1"
    (transformer,) = [path for path in models if path.startswith(str(tiny_flux1_dir / "transformer"))]
    assert models[transformer]["architecture"] == "flux-dev"

    config = tiny_config(lora={"rank": 2, "alpha": 2}, limits={"max_steps": 2})
    config["model"] = {"path": str(tiny_flux1_dir), "t5_max_length": 24}
    report = studio.post("/api/flow/preflight", {"config": config, "samples_per_s": 2.0}, 200)
    assert (report["problems"], report["can_run"]) == ([], True)
    assert report["memory"]["blocks"] == 3
    assert report["memory"]["parts"]["text encoder"] > 0

    config["model"] |= {
        "vae_path": str(tiny_flux1_dir / "vae"),
        "t5_path": str(tiny_flux1_dir / "text_encoder_2"),
        "t5_config_path": str(tiny_flux1_dir / "text_encoder_2" / "config.json"),
        "t5_tokenizer_path": str(tiny_flux1_dir / "tokenizer_2"),
        "clip_path": str(tiny_flux1_dir / "text_encoder"),
        "clip_tokenizer_path": str(tiny_flux1_dir / "tokenizer"),
    }
    studio.post("/api/flow/train/start", {"name": "fox", "config": config}, 201)
    studio.wait("fox", "finished")
    losses = [event["loss"] for event in studio.events("fox") if event["kind"] == "step"]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
