"""Labels, groups, units and detail levels of forms come from the JSON schema of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from flowloom.config.keys import config_keys
from flowloom.schema import Section, title_of, ui
from flowloom.tasks.registry import ALL as TASKS
from flowloom.trainers import ALL as TRAINERS

Steps = Annotated[int, ui(unit="steps")]
FORMS = {**TRAINERS, **TASKS}
MEASURED = re.compile(
    r"_(mib|gib|s|minutes|steps|epochs|tokens|megapixels|side|resolution|reso)$|_every$|_bucket_reso$|^(resolution|image_dim)$"
)
COUNTS_OF_OTHER_THINGS = {
    "first_n_steps_wo_cfg",  # sampler steps
    "gradient_accumulation_steps",  # batches
}


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a form with its path: the form's own and those of all its sections."""
    for name, section in [("", schema), *schema.get("$defs", {}).items()]:
        for key, field in section.get("properties", {}).items():
            yield f"{name}.{key}", field


def _is_number(field: dict[str, Any]) -> bool:
    kinds = [field, *field.get("anyOf", ()), *field.get("prefixItems", ()), field.get("items", {})]
    return any(kind.get("type") in ("integer", "number") for kind in kinds)


def _has_unit(field: dict[str, Any]) -> bool:
    parts = [field, *field.get("anyOf", ()), *field.get("prefixItems", ()), field.get("items", {})]
    return any(part.get("unit") or part.get("items", {}).get("unit") for part in parts)


@pytest.mark.parametrize("name", FORMS)
def test_every_field_of_a_form_has_a_title_and_a_group(name):
    for path, field in _fields(FORMS[name].schema()):
        assert field["title"], path
        assert field["group"], path


@pytest.mark.parametrize("name", FORMS)
def test_every_number_with_a_physical_unit_names_it(name):
    missing = [
        path
        for path, field in _fields(FORMS[name].schema())
        if MEASURED.search(key := path.rpartition(".")[2])
        and key not in COUNTS_OF_OTHER_THINGS
        and _is_number(field)
        and not _has_unit(field)
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["flow", "kohya"])
def test_a_trainer_has_simple_and_advanced_fields(name):
    simple = [field.get("simple", False) for _, field in _fields(FORMS[name].schema())]
    assert any(simple)
    assert not all(simple)


def test_labels_are_readable():
    assert title_of("jsonl_metadata_path") == "JSONL metadata path"
    assert title_of("lr") == "Learning rate"
    assert title_of("limit_gib") == "Limit"


def test_metadata_of_a_type_holds_for_its_fields_and_a_field_adds_to_it():
    class PreviewSection(Section):
        every: Annotated[Steps, ui(simple=True)] = 1
        first: Annotated[int, ui(group="Start", title="First step")] = 0

    every, first = PreviewSection.model_json_schema()["properties"].values()
    assert (every["unit"], every["simple"], every["group"]) == ("steps", True, "Preview")
    assert (first["title"], first["group"]) == ("First step", "Start")
    assert "simple" not in first


def test_keys_in_help_and_documents_have_the_unit_of_the_form():
    keys = config_keys()
    assert (keys["training.save_every"].unit, keys["cache.limit_gib"].unit) == ("steps", "GiB")
    assert keys["inference.image_dim"].unit == "pixels"
    assert keys["training.lr"].unit == ""
