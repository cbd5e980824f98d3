"""Golden losses: a refactor leaves them equal, a change of numerics says so in the changelog.

If a change is meant: pytest tests/engine/test_golden.py --write-golden
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.engine.__main__ import run_engine
from flowloom.run.directory import RunDir

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 4, "alpha": 8}},
    "rotation": {
        "training": {"change_layer_every": 2, "trained_single_blocks": 1, "trained_double_blocks": 1}
    },
    "cfg target": {"training": {"cfg_scale_strength": 3.0}},
    "x0, huber": {"model": {"use_x0": True}, "objective": {"loss": "huber"}},
    "uniform, no pairing": {"objective": {"noise_level": {"kind": "uniform"}, "pairing": "random"}},
    "union mask, bf16": {"objective": {"mask_mode": "flow_union"}, "parallel": {"dtype": "bf16"}},
}


def losses(run_dir: RunDir) -> list[float]:
    found: list[float] = []
    run_engine(run_dir, lambda event: found.append(event["loss"]) if event["kind"] == "step" else None)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_golden(
    make_run: Callable[..., RunDir], name: str, request: pytest.FixtureRequest
) -> None:
    found = losses(make_run(**RUNS[name]))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=1) + "\n")
        return
    # Another CPU sums in another order; a change of meaning is far larger than this.
    assert found == pytest.approx(golden[name], rel=0.01 if "bf16" in name else 2e-4)
