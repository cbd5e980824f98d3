"""The service's description of itself, and its costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowloom.server.app import create_app
from flowloom.server.problems import MEDIA_TYPE
from flowloom.server.settings import Settings
from tests.server.conftest import Studio

OPENAPI = """
import json, sys, time
began = time.perf_counter()
from collections.abc import Iterator
from pathlib import Path
from flowloom.server.app import create_app
from flowloom.server.settings import Settings
create_app(Settings(Path("."))).openapi()
print(json.dumps([time.perf_counter() - began, sorted(sys.modules)]))
"""


OPENED = create_app(Settings(Path())).openapi()
PATHS: dict[str, dict[str, Any]] = OPENED["paths"]
RUN = {"id", "trainer", "state", "phase", "step", "checkpoint", "error"}
EXAMINED = {"can_run", "problems", "data", "memory", "disk", "time", "changes", "fits", "hints"}
TRAINERS_ROUTES = {
    ("get", "config", "200"): {"schema", "defaults", "presets"},
    ("post", "config", "200"): {"is_valid", "problems"},
    ("post", "config/preview", "200"): {"is_valid", "problems", "files", "command"},
    ("post", "preflight", "200"): EXAMINED,
    ("post", "train/start", "201"): RUN,
    ("post", "train/stop", "200"): RUN,
    ("get", "train/status", "200"): {"running", "queued"},
}
"""Fields of the answers of each route: the pattern of every trainer, as docs/api.md describes it."""
RUNS_ROUTES = ("stop", "kill", "resume", "cancel", "move", "duplicate", "control")


def operations() -> list[Any]:
    return [
        pytest.param(operation, id=f"{method} {path}")
        for path, methods in PATHS.items()
        for method, operation in methods.items()
    ]


@pytest.mark.parametrize("operation", operations())
def test_every_route_has_a_summary_an_explanation_and_error_answers(operation: dict[str, Any]):
    # FastAPI makes one of the function's name where there is none.
    made_up = operation["operationId"].partition("-")[2].replace("_", " ").title()
    assert operation["summary"] != made_up
    assert operation["description"]
    errors = {code: answer for code, answer in operation["responses"].items() if int(code) >= 400}
    assert errors
    for answer in errors.values():
        content = answer["content"][MEDIA_TYPE]
        assert content["schema"] == {"$ref": "#/components/schemas/ProblemView"}
        assert content["example"]
        assert set(answer["content"]) == {MEDIA_TYPE}


@pytest.mark.parametrize("path", PATHS)
def test_paths_with_a_name_document_404(path: str):
    names = {"{name}"} if path.startswith("/api/secrets") else set[str]()
    if not set(re.findall(r"{\w+[^}]*}", path)) - names:
        return
    for method, operation in PATHS[path].items():
        assert "404" in operation["responses"], method


def answered(operation: dict[str, Any], status: str) -> set[str]:
    """The names of what is answered."""
    reference = operation["responses"][status]["content"]["application/json"]["schema"]["$ref"]
    return set(OPENED["components"]["schemas"][reference.rpartition("/")[2]]["properties"])


def test_every_trainer_has_the_same_routes():
    found = {
        (method, path.removeprefix("/api/{trainer}/"), status): answered(operation, status)
        for path, methods in PATHS.items()
        if path.startswith("/api/{trainer}/") and not path.endswith("/models")
        for method, operation in methods.items()
        for status in operation["responses"]
        if int(status) < 300
    }
    assert found.keys() == TRAINERS_ROUTES.keys()
    for route, names in TRAINERS_ROUTES.items():
        assert found[route] >= names, route
        assert names == RUN or found[route] == names, route
    choices = PATHS["/api/{trainer}/models"]["get"]["responses"]["200"]["content"]["application/json"]
    assert choices["schema"]["additionalProperties"] == {"items": {"type": "string"}, "type": "array"}


def test_every_action_on_a_run_returns_its_state():
    for name in RUNS_ROUTES:
        operation = PATHS[f"/api/runs/{{run_id}}/{name}"]["post"]
        assert answered(operation, "201" if name == "duplicate" else "200") >= RUN
        assert "409" in operation["responses"], "it may be in another state"
    assert "409" in PATHS["/api/{trainer}/train/start"]["post"]["responses"]
    assert "409" in PATHS["/api/{trainer}/train/stop"]["post"]["responses"]


@pytest.mark.parametrize("operation", operations())
def test_every_body_has_an_example(operation: dict[str, Any], one_studio: Studio):
    if "requestBody" not in operation:
        return
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = one_studio.get("/api/openapi.json")["components"]["schemas"][reference.rpartition("/")[2]]
    assert [name for name, value in schema["properties"].items() if "examples" in value]


def has_example(node: Any, schemas: dict[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    """True if a part of the document, or a schema that it refers to, shows a value."""
    if isinstance(node, list):
        return any(has_example(item, schemas, seen) for item in node)
    if not isinstance(node, dict):
        return False
    if {"example", "examples", "enum", "const"} & node.keys():
        return True
    reference = str(node.get("$ref", "")).rpartition("/")[2]
    if reference and reference not in seen:
        return has_example(schemas[reference], schemas, seen | {reference})
    return any(has_example(item, schemas, seen) for item in node.values())


@pytest.mark.parametrize("operation", operations())
def test_every_route_shows_an_example(operation: dict[str, Any], one_studio: Studio):
    schemas = one_studio.get("/api/openapi.json")["components"]["schemas"]
    answers = [answer for code, answer in operation["responses"].items() if int(code) < 300]
    parts = [operation.get("parameters", []), operation.get("requestBody", {}), answers]
    is_silent = all(code == "204" for code in operation["responses"] if int(code) < 300)
    assert has_example(parts, schemas) or (is_silent and not operation.get("parameters"))


OPEN = {
    "ConfigView.schema": "a JSON schema",
    "TaskConfig.schema": "a JSON schema",
    "ConfigView.defaults": "a configuration, which the JSON schema beside it describes",
    "TaskConfig.defaults": "a configuration, which the JSON schema beside it describes",
    "PresetView.config": "a configuration, which the JSON schema beside it describes",
    "KohyaImportResult.config": "a configuration of Kohya",
    "KohyaImportResult.defaults": "keys and values of a file of another program",
    "KohyaImportResult.left_over": "keys and values of a file of another program",
    "RunJson.config": "a configuration of any trainer or task",
    "ValueChange.from": "a value of a configuration",
    "ValueChange.to": "a value of a configuration",
    "Change.value": "a value of a configuration",
    "/api/runs/{run_id}/result": "a JSON file whose form depends on the task",
}
"""Parts of responses that have no schema, with the reason."""


def untyped(node: Any, where: str, seen: set[str]) -> Iterator[str]:
    """The parts of a response's schema that allow any value or any keys."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name not in seen:
            seen.add(name)
            yield from untyped(OPENED["components"]["schemas"][name], name, seen)
        return
    if not node.keys() & {"type", "anyOf", "oneOf", "allOf", "enum", "const"}:
        yield where
    for name, field in node.get("properties", {}).items():
        yield from untyped(field, f"{where}.{name}", seen)
    parts = [part for key in ("anyOf", "oneOf", "allOf", "prefixItems") for part in node.get(key, [])]
    if node.get("type") == "array" and "prefixItems" not in node:
        parts.append(node.get("items", {}))
    if node.get("type") == "object" and "properties" not in node:
        values = node.get("additionalProperties", True)
        parts.append({} if values is True else values)
    for part in parts:
        yield from untyped(part, where, seen)


def test_every_response_has_a_schema():
    found: set[str] = set()
    for path, methods in PATHS.items():
        for operation in methods.values():
            answers = [answer for status, answer in operation["responses"].items() if int(status) < 300]
            schemas = [answer.get("content", {}).get("application/json") for answer in answers]
            found |= {part for each in schemas if each for part in untyped(each["schema"], path, set())}
    assert found == OPEN.keys()


def test_a_body_that_arrives_too_slowly_is_a_documented_problem():
    for methods in PATHS.values():
        for operation in methods.values():
            assert ("408" in operation["responses"]) == ("requestBody" in operation)


def test_the_names_of_routes_are_unique():
    names = [operation.values[0]["operationId"] for operation in operations()]
    assert len(names) == len(set(names))


def test_the_service_never_imports_torch():
    done = subprocess.run([sys.executable, "-c", OPENAPI], capture_output=True, text=True, check=True)
    _, modules = json.loads(done.stdout)
    assert not {"torch", "numpy", "PIL", "transformers", "diffusers", "pyvips"} & set(modules)


def test_a_studio_is_small(one_studio: Studio):
    assert one_studio.get("/api/system")["studio_memory_mib"] < 150


def objects(node: Any, schemas: dict[str, Any], seen: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema with named fields that a body is made of, by its name or title."""
    if isinstance(node, list):
        for item in node:
            yield from objects(item, schemas, seen)
    if not isinstance(node, dict):
        return
    if "properties" in node:
        yield node.get("title", "?"), node
    reference = str(node.get("$ref", "")).rpartition("/")[2]
    if reference and reference not in seen:
        seen.add(reference)
        yield from objects(schemas[reference], schemas, seen)
    parts = [node.get(key) for key in ("items", "anyOf", "oneOf", "allOf")]
    yield from objects([*parts, *node.get("properties", {}).values()], schemas, seen)


@pytest.mark.parametrize("operation", operations())
def test_a_body_with_an_unknown_field_is_refused(operation: dict[str, Any]):
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    found = dict(objects(body.get("schema"), OPENED["components"]["schemas"], set()))
    assert [name for name, schema in found.items() if schema.get("additionalProperties") is not False] == []


def test_a_misspelt_place_in_the_queue_moves_nothing(one_studio: Studio):
    answer = one_studio.http.post("/api/runs/fox/move", json={"befor": "cat"})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"code": "unknown-key", "where": "/befor", "detail": "is not a field of this request.", "hint": ""}
    ]


@pytest.mark.parametrize("path", ["flow/train/start", "runs/named/duplicate", "tasks/dataset-lint/start"])
@pytest.mark.parametrize("name", ["cats v1/é", "-x", "x" * 101, "", "a\n"])
def test_a_name_that_no_run_can_have_is_refused_in_plain_words(one_studio: Studio, path: str, name: str):
    run = one_studio.home / "runs" / "named"
    run.mkdir(exist_ok=True, parents=True)
    (run / "run.json").write_text('{"config": {}}')
    body = {"name": name} if path.endswith("duplicate") else {"name": name, "config": {}}
    answer = one_studio.http.post(f"/api/{path}", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["where"] == "/name"
    assert error["detail"].startswith("Run name: letters, digits, . _ - only")
