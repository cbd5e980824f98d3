"""Each key of a configuration that names a path is held to the studio's folders; no other way leads out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowloom.server.allowed_roots import AllowedRoots
from flowloom.tasks import ALL as TASKS
from flowloom.trainers import ALL as TRAINERS
from tests.server.conftest import Studio

NO_PATHS = frozenset(
    """
    always_trained background below blacklist caption_encoding caption_extension caption_prefix caption_suffix
    checkout class_tokens default_caption encoding endpoint entity experiment first_tags
    huggingface_path_in_repo huggingface_repo_id keep_tokens_separator lr_scheduler name negative
    network_module optimizer_args optimizer_type output_name profile project prompt prompts
    rating_prefix raw_arguments region replacements
    repo_id revision run run_hash save_as sha256 system_prompt target_layers trained_layer_keywords trainer
    trigger url aim_experiment_name
    """.split()  # noqa: SIM905 -- a long list of words
)
"""Keys with text that is no path of this machine, or that has a separate check."""
HUB_REPOSITORIES = frozenset({"tag.repo", "caption.repo", "download.items.repo", "dataset-import.repo"})
EVERYTHING = {**TRAINERS, **TASKS}


def texts(
    schema: dict[str, Any], whole: dict[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """The places of all free texts that a schema has."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from texts(whole["$defs"][name], whole, place)
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from texts(part, whole, place)
    for key, part in schema.get("properties", {}).items():
        yield from texts(part, whole, (*place, key))
    for part in (schema.get("items"), schema.get("additionalProperties"), *schema.get("prefixItems", ())):
        if isinstance(part, dict):
            yield from texts(part, whole, (*place, "0") if schema.get("type") == "array" else place)
    if schema.get("type") == "string" and not {"enum", "const"} & schema.keys():
        yield place


def config_with(place: tuple[str, ...], value: str) -> Any:
    for key in reversed(place):
        value = [value] if key == "0" else {key: value}  # type: ignore[assignment]
    return value


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_key_of_a_schema_is_checked_as_a_path_or_known_to_be_none(name: str, tmp_path: Path) -> None:
    schema, roots = EVERYTHING[name].schema(), AllowedRoots({"data": tmp_path / "data"})
    for place in sorted(set(texts(schema, schema))):
        keys = [key for key in place if key != "0"]
        is_path = bool(list(roots.path_problems(config_with(place, "/etc/passwd"))))
        is_known = keys[-1] in NO_PATHS or ".".join([name, *keys]) in HUB_REPOSITORIES
        if keys[-1] == "network_args":
            assert list(roots.path_problems(config_with(place, "preset=/etc/passwd")))
        else:
            assert is_path != is_known, f"{'.'.join(place)}: is it a path? Then it must be refused here."


@pytest.mark.parametrize("repo", ["/etc", "../../..", "s3://bucket/x", "~root"])
def test_aims_folder_outside_of_the_studio_is_refused(one_studio: Studio, repo: str) -> None:
    for config, pointer in (
        ({"loggers": [{"kind": "aim", "repo": repo}]}, "/config/loggers/0/repo"),
        ({"training": {"aim_path": repo}}, "/config/training/aim_path"),
    ):
        answer = one_studio.http.post("/api/flow/config", json={"config": config}).json()
        (problem,) = [problem for problem in answer["problems"] if problem["where"] == pointer]
        reasons = ["outside the studio's folders", *(["a path on this machine"] if "://" in repo else [])]
        assert any(reason in problem["detail"] for reason in reasons)


def test_aims_folder_in_the_studio_and_its_server_are_taken(one_studio: Studio) -> None:
    for repo in ("aim://8.8.8.8:53800", str(one_studio.home / "data" / "aim")):
        config = {"loggers": [{"kind": "aim", "repo": repo}]}
        answer = one_studio.http.post("/api/flow/config", json={"config": config}).json()
        assert "/config/loggers/0/repo" not in {problem["where"] for problem in answer["problems"]}
