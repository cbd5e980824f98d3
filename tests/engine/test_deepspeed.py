"""Runs under DeepSpeed's ZeRO equal those of one rank, up to the order of sums."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from flowloom.config.run import RunConfig
from flowloom.engine.parallel.zero_settings import zero_settings
from flowloom.engine.state import Precision
from flowloom.errors import ConfigError
from flowloom.run.directory import RunDir
from tests.engine.test_fsdp import (
    CASES,
    LORA,
    STEPS,
    TRAINING,
    Runs,
    assert_equal,
    events_of,
    resume_in,
    small_chroma,
    train,
)

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install deepspeed"
)
PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}_cpu"
EXTENSIONS = Path.home() / ".cache" / "torch_extensions" / PYTHON
"""Operators that DeepSpeed compiles when it needs them for the first time."""
HAS_CPU_ADAM = (EXTENSIONS / "cpu_adam" / "cpu_adam.so").exists()
"""DeepSpeed's AdamW for offload_optimizer takes two minutes to compile."""
OFFLOADED = {
    "weights": {"offload_param": {"device": "cpu"}},
    "states": {"offload_optimizer": {"device": "cpu"}},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "zero1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero3": {"strategy": "deepspeed", "zero_stage": 3},
    "weights": {"strategy": "deepspeed", "zero_stage": 3},
    "states": {"strategy": "deepspeed", "zero_stage": 2},
    "bf16": {"strategy": "deepspeed", "zero_stage": 2, "dtype": "bf16"},
    "bf16-3": {"strategy": "deepspeed", "zero_stage": 3, "dtype": "bf16"},
    "1": {"strategy": "auto"},
}
PAIRS = [
    *((case, layout) for case in ("full", "lora") for layout in ("zero1", "zero2", "zero3")),
    ("updates", "zero2"),
    ("updates", "zero3"),
    ("keywords", "zero3"),
    ("lokr", "zero3"),
    ("dora", "zero2"),
    ("full", "weights"),
    ("full", "states"),
]
ROUNDED = [("keywords", "bf16"), ("keywords", "bf16-3")]
RESUMED = [
    ("full", "1", "zero3"),
    ("full", "zero2", "1"),
    ("lora", "zero3", "zero1"),
    ("keywords", "bf16", "bf16"),
    ("keywords", "bf16-3", "bf16-3"),
]
"""Half of the steps in one layout, half in another."""


@pytest.fixture(scope="module")
def runs(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every case on one rank, and in each layout that it is tested in, on two."""
    root = tmp_path_factory.mktemp("zero")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(EXTENSIONS))
    chroma = small_chroma(root)
    for name, zero in OFFLOADED.items():
        (root / f"{name}.json").write_text(json.dumps({"zero_optimization": zero}))
    made: Runs = {}
    pairs = [pair for pair in PAIRS if pair[1] != "states" or HAS_CPU_ADAM]
    cases = list(dict.fromkeys(case for case, *_ in pairs))
    for case, layout, *then in [*((case, "1") for case in cases), *pairs, *ROUNDED, *RESUMED]:
        parallel = {"device": "cpu", "num_threads": 1, **LAYOUTS[layout]}
        if layout in OFFLOADED:
            parallel["deepspeed_config_path"] = str(root / f"{layout}.json")
        sections: dict[str, Any] = {
            "training": TRAINING,
            "dataloader": {"batch_size": 5},
            "limits": {"max_steps": STEPS // 2 if then else STEPS},
            "model": chroma,
            **CASES[case],
        }
        run_dir = made[case, layout, *then] = RunDir.create("-".join((case, layout, *then)), root)
        run_dir.write_run(make_config(**sections, parallel=parallel), "a test")
    for is_resumed in (False, True):
        now = {key: run_dir for key, run_dir in made.items() if len(key) == 3 or not is_resumed}
        place = 2 if is_resumed else 1
        for key, run_dir in now.items():
            if is_resumed:
                resume_in(LAYOUTS[key[2]], run_dir, STEPS)
        train([run_dir for key, run_dir in now.items() if key[place] == "1"], 1)
        train([run_dir for key, run_dir in now.items() if key[place] != "1"], 2)
    monkeypatch.undo()
    return made


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("case", "layout"), PAIRS)
def test_a_run_under_zero_equals_that_of_one_rank(runs: Runs, case: str, layout: str) -> None:
    if layout == "states" and not HAS_CPU_ADAM:
        pytest.skip("DeepSpeed's AdamW for offload_optimizer is not compiled here, which takes two minutes")
    assert_equal(runs[case, "1"], runs[case, layout])


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("case", "before", "after"), RESUMED)
def test_a_run_resumes_under_another_stage_or_strategy(
    runs: Runs, case: str, before: str, after: str
) -> None:
    is_rounded = (case, after) in ROUNDED
    assert_equal(runs[case, after if is_rounded else "1"], runs[case, before, after])


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("case", "layout"), ROUNDED)
def test_bfloat16_weights_are_updated_in_float32(runs: Runs, case: str, layout: str) -> None:
    expected, found = (events_of(runs[case, name], "step") for name in ("1", layout))
    for before, after in zip(expected, found, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.02)
    folder = runs[case, layout].latest_checkpoint()
    assert folder is not None
    states = torch.load(folder / "state" / "optimizer.pt", weights_only=True)["optimizer"]
    copies = [state["float32"] for state in states.values()]
    assert copies
    assert any((copy != copy.bfloat16()).any() for copy in copies)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zero1", "zero3"])
def test_validation_is_that_of_one_rank(runs: Runs, layout: str) -> None:
    expected, found = (events_of(runs["full", name], "validated") for name in ("1", layout))
    assert [event["weights"] for event in expected] == ["raw", "ema"] * 2
    for before, after in zip(expected, found, strict=True):
        assert after["by_quantile"] == pytest.approx(before["by_quantile"], rel=1e-5)


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"optimizer": {"kind": "adamw8bit"}}, "optimizer.kind"),
        ({"training": {"change_layer_every": 5}}, "training.change_layer_every"),
        ({"lora": LORA | {"base_model_quant_level": "8bit"}}, "lora.base_model_quant_level"),
        ({"lora": LORA, "memory": {"streamed_blocks": "all"}}, "memory.streamed_blocks"),
        ({"optimizer": {"device": "cpu"}}, "optimizer.device"),
        ({"memory": {"fused_backward": True}}, "memory.fused_backward"),
        ({"lora": LORA, "method": {"kind": "dora"}, "parallel": {"zero_stage": 3}}, "parallel.zero_stage"),
        ({"parallel": {"strategy": "ranks", "deepspeed_config_path": "x"}}, "parallel.deepspeed_config_path"),
    ],
)
def test_a_run_that_zero_cannot_train_is_rejected_by_the_key(sections: dict[str, Any], where: str) -> None:
    sections["parallel"] = {"strategy": "deepspeed"} | sections.get("parallel", {})
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(sections)
    assert f"{where}: " in str(caught.value)


def settings_of(tmp_path: Path, content: dict[str, Any], **parallel: Any) -> dict[str, Any]:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(content))
    section = {"strategy": "deepspeed", "deepspeed_config_path": str(path), **parallel}
    config = RunConfig.model_validate({"parallel": section, "optimizer": {"max_grad_norm": 0.5}})
    return zero_settings(config, Precision(torch.device("cpu"), torch.bfloat16, torch.bfloat16))


@needs_deepspeed
def test_a_file_of_other_programs_is_merged(tmp_path: Path) -> None:
    theirs = {
        "train_batch_size": "auto",
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1e6, "overlap_comm": "auto"},
        "wall_clock_breakdown": True,
    }
    settings = settings_of(tmp_path, theirs, zero_stage=3)
    assert settings["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 1e6}
    assert settings["wall_clock_breakdown"]
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True}


@needs_deepspeed
@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        ({"train_batch_size": 8}, "train_batch_size", "dataloader.batch_size"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", "optimizer.kind"),
        ({"zero_optimisation": {}}, "zero_optimisation", "no setting"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "parallel.zero_stage"),
        ({"zero_optimization": {"stages": 2}}, "zero_optimization.stages", "Extra inputs"),
        (
            {"zero_optimization": {"reduce_bucket_size": "big"}},
            "zero_optimization.reduce_bucket_size",
            "integer",
        ),
    ],
)
def test_settings_that_do_not_fit_are_rejected_by_name(
    tmp_path: Path, content: dict[str, Any], where: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, content)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"parallel.deepspeed_config_path: {where}: ")
    assert message in str(problem)
