"""Missing modules of checkouts are found by their own import statements, without importing them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowloom.engine.doctor import trainer_findings
from flowloom.trainers import FLOW_UPSTREAM, KOHYA
from flowloom.trainers.checkouts import Checkout
from flowloom.trainers.kohya.families import FACTS
from flowloom.trainers.missing_packages import missing_packages, states
from tests.fakes.flow_checkout import flow_checkout  # noqa: F401 -- a fixture

UTIL = """
import os, no_such_thing
from no_such_other.part import (
    a, b)
from library import deep
try:
    import optional_thing
except ImportError:
    pass
raise RuntimeError("imported")
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """All scripts of sd-scripts; they import missing modules, and end the process that imports them."""
    library = tmp_path / "sd" / "library"
    library.mkdir(parents=True)
    (library / "train_util.py").write_text(UTIL)
    (library / "deep.py").write_text("import no_such_deep_thing as d\nimport json.decoder\n")
    for facts in FACTS.values():
        for script in filter(None, (facts.lora_script, facts.full_script)):
            (tmp_path / "sd" / script).write_text("import torch\nfrom library.train_util import thing\n")
    listed = {"kohya": [{"path": str(tmp_path / "sd"), "python": sys.executable}]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "list.json"))
    return Checkout(path=tmp_path / "sd", python=Path(sys.executable))


def test_modules_are_found_by_following_the_scripts(checkout: Checkout) -> None:
    assert {"no_such_thing", "no_such_other", "no_such_deep_thing"} <= set(
        missing_packages("kohya", checkout)
    )
    assert not {"torch", "library", "optional_thing", "json", "os"} & set(missing_packages("kohya", checkout))


def test_scripts_that_are_gone_are_named(checkout: Checkout) -> None:
    (checkout.path / "flux_train_network.py").unlink()
    assert "flux_train_network.py" in missing_packages("kohya", checkout)
    (lack,) = missing_packages("kohya", checkout.model_copy(update={"path": checkout.path.parent}))
    assert "scripts" in lack


def test_a_python_that_does_not_start_is_reported(checkout: Checkout) -> None:
    (lack,) = missing_packages("kohya", checkout.model_copy(update={"python": Path("/no/such/python")}))
    assert "Python" in lack


def test_the_doctor_has_a_line_for_each_checkout_with_its_revision(checkout: Checkout) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout.path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    (finding,) = trainer_findings("kohya")
    assert not finding.is_ok
    assert f"{checkout.path} at {head.stdout.strip()}, with {sys.executable}; missing: " in finding.text
    (finding,) = trainer_findings("flow-upstream")
    assert finding.is_ok
    assert "flowloom trainers install flow-upstream" in finding.text
    assert trainer_findings("flow") == []


def test_a_damaged_list_is_reported(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("{")
    ((_, error, missing),) = states("kohya")
    assert "list.json" in error
    assert missing


def broken_like_flows_head(path: Path) -> None:
    """As FLOW's main branch since ec681cb: a call with a key that its dataclass does not have."""
    model = path / "src" / "models" / "chroma"
    model.mkdir(parents=True)
    (model / "layers.py").write_text("import no_such_layers\n")
    (model / "model.py").write_text(
        "from dataclasses import dataclass\nfrom .layers import Block\n\n@dataclass\nclass ChromaParams:\n"
        "    depth: int\n\nparams = ChromaParams(depth=19, use_x0=False)\n"
    )
    trainer = path / "src" / "trainer" / "train_chroma.py"
    trainer.write_text("import torch\nfrom src.models.chroma.model import params\n" + trainer.read_text())


def test_a_revision_of_flow_that_cannot_be_imported_is_named_with_one_that_can(
    flow_checkout: Path,  # noqa: F811
) -> None:
    broken_like_flows_head(flow_checkout)
    ((_, _, missing),) = states("flow-upstream")
    (fault,) = [one for one in missing if "cannot be imported" in one]
    assert "src/models/chroma/model.py" in fault
    assert "ChromaParams has no use_x0" in fault
    assert "git checkout 51ee4e6" in fault
    assert "no_such_layers" in missing, "relative imports are followed"
    (finding,) = trainer_findings("flow-upstream")
    assert "git checkout 51ee4e6" in finding.text


def test_missing_modules_of_the_chosen_trainer_are_a_problem_before_the_start(flow_checkout: Path) -> None:  # noqa: F811
    broken_like_flows_head(flow_checkout)
    messages = [
        problem.message
        for problem in FLOW_UPSTREAM.check({"trainer": "train_mp.py"})
        if problem.where == "checkout"
    ]
    assert len(messages) == 1
    assert "no_such_layers" in messages[0]
    assert "git checkout 51ee4e6" in messages[0]
    other = FLOW_UPSTREAM.check({"trainer": "train_mp_old.py"})
    assert "checkout" not in {one.where for one in other}, "this one imports nothing of it"


def test_a_trainer_on_cuda_is_refused_where_there_is_none(flow_checkout: Path) -> None:  # noqa: F811
    trainer = flow_checkout / "src" / "trainer" / "train_old.py"
    trainer.write_text(
        "import torch\n\ndef ranks():\n    return torch.cuda.device_count()\n" + trainer.read_text()
    )
    messages = [
        one.message for one in FLOW_UPSTREAM.check({"trainer": "train_mp_old.py"}) if one.where == "checkout"
    ]
    is_here = "CUDA" not in " ".join(messages)
    assert is_here == torch.cuda.is_available()


def test_missing_modules_of_kohyas_script_are_a_problem_before_the_start(checkout: Checkout) -> None:
    messages = [one.message for one in KOHYA.check({"family": "sdxl"}) if one.where == "checkout"]
    (missing,) = [message for message in messages if "no_such_thing" in message]
    assert "no_such_deep_thing" in missing


def test_a_complete_checkout_of_flow_has_no_missing_modules(flow_checkout: Path) -> None:  # noqa: F811
    ((found, error, missing),) = states("flow-upstream")
    assert found
    assert found.path == flow_checkout
    assert str(flow_checkout) in error
    assert missing == []
