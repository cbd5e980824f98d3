"""The answer to any request at any route is one of the OpenAPI document, never a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from flowloom.server.app import create_app
from flowloom.server.problems import MEDIA_TYPE
from flowloom.server.settings import Settings
from tests.server.conftest import Studio, end_runs

EXAMPLES = 40
SLOW = {
    "POST /api/session": 3,
    "POST /api/datasets/{dataset}/lint": 5,
    "POST /api/datasets/{dataset}/convert": 5,
    "POST /api/datasets/{dataset}/export": 5,
    "POST /api/stores/test": 10,
    "GET /api/system/doctor": 1,
}
"""Examples of those that take their time: a wrong token costs a second, others begin processes."""
CHECKS = [response_schema_conformance, status_code_conformance]
STREAMS = "text/event-stream"
SCHEMA = schemathesis.openapi.from_dict(create_app(Settings(Path())).openapi())
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def lone_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with nothing in it, and with separate secrets."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLOOM_SECRETS", str(folder / "secrets.json"))
        patch.setenv("FLOWLOOM_TRAINERS", str(folder / "trainers.json"))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        studio = Studio(folder / "home").start()
    yield studio
    end_runs(studio.home)
    studio.end()


@pytest.fixture
def fox_studio(lone_studio: Studio) -> Studio:
    """The same, with the run and the dataset that examples name."""
    den = lone_studio.home / "data" / "fox" / "den"
    den.mkdir(parents=True, exist_ok=True)
    (den / "03.webp").write_bytes(b"no picture")
    (den / "03.txt").write_text("two cubs")
    run = lone_studio.home / "runs" / "fox-lora"
    for folder in ("studio", "samples/step_00000100", "checkpoints/step_00000100"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps({"config": {}, "created": 1.0}))
    (run / "checkpoints" / "step_00000100" / "adapter.safetensors").write_bytes(b"weights")
    (run / "samples" / "step_00000100" / "00.png").write_bytes(b"no picture")
    return lone_studio


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_request_meets_a_fault(operation: Any, fox_studio: Studio) -> None:
    @given(
        case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode])
    )
    @settings(
        max_examples=SLOW.get(operation.label, EXAMPLES),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    def send(case: Any) -> None:
        request = case.as_transport_kwargs(base_url=fox_studio.url)
        with requests.request(**request, timeout=90, stream=True) as answer:
            if answer.headers.get("content-type", "").startswith(STREAMS):
                return
            assert answer.status_code != 500, answer.text
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == MEDIA_TYPE
                assert operation.method == "head" or answer.json()["title"]
            case.validate_response(answer, checks=CHECKS)

    send()
