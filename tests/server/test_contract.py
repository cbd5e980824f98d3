"""What the service says of itself, and what it costs to have."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from flowloom.server.app import create_app
from flowloom.server.problems import MEDIA_TYPE
from flowloom.server.settings import Settings
from tests.server.conftest import Studio

OPENAPI = """
import json, sys, time
began = time.perf_counter()
from pathlib import Path
from flowloom.server.app import create_app
from flowloom.server.settings import Settings
create_app(Settings(Path("."))).openapi()
print(json.dumps([time.perf_counter() - began, sorted(sys.modules)]))
"""


def operations() -> list[Any]:
    import pathlib

    paths = create_app(Settings(pathlib.Path())).openapi()["paths"]
    return [
        pytest.param(operation, id=f"{method} {path}")
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]


@pytest.mark.parametrize("operation", operations())
def test_every_route_has_a_summary_an_explanation_and_error_answers(operation: dict[str, Any]):
    assert operation["summary"]
    assert operation["description"]
    errors = {code: answer for code, answer in operation["responses"].items() if int(code) >= 400}
    assert errors
    for answer in errors.values():
        content = answer["content"][MEDIA_TYPE]
        assert content["schema"] == {"$ref": "#/components/schemas/ProblemView"}
        assert content["example"]
        assert set(answer["content"]) == {MEDIA_TYPE}


@pytest.mark.parametrize("operation", operations())
def test_every_body_has_an_example(operation: dict[str, Any], one_studio: Studio):
    if "requestBody" not in operation:
        return
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = one_studio.get("/api/openapi.json")["components"]["schemas"][reference.rpartition("/")[2]]
    assert [name for name, value in schema["properties"].items() if "examples" in value]


def has_example(node: Any, schemas: dict[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    """Whether a part of the document, or a schema that it refers to, shows a value."""
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
    told = [operation.get("parameters", []), operation.get("requestBody", {}), answers]
    is_silent = all(code == "204" for code in operation["responses"] if int(code) < 300)
    assert has_example(told, schemas) or (is_silent and not operation.get("parameters"))


def test_the_names_of_routes_are_unique():
    names = [operation.values[0]["operationId"] for operation in operations()]
    assert len(names) == len(set(names))


def test_the_service_never_imports_torch():
    done = subprocess.run([sys.executable, "-c", OPENAPI], capture_output=True, text=True, check=True)
    _, modules = json.loads(done.stdout)
    assert not {"torch", "numpy", "PIL", "transformers", "diffusers", "pyvips"} & set(modules)


def test_a_studio_is_small(one_studio: Studio):
    assert one_studio.get("/api/system")["studio_memory_mib"] < 150
