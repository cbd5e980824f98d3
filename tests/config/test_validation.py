"""Problems of a configuration are reported in plain text."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field, ValidationError

from flowloom.config.run import RunConfig
from flowloom.config.validation import booleans_for_numbers, problems_of


class Few(BaseModel):
    prompts: list[str] = Field(min_length=1)
    sizes: list[int] = Field(min_length=2, max_length=3)


def test_too_few_and_too_many_values_are_counted_as_people_do() -> None:
    data = {"prompts": [], "sizes": [1, 2, 3, 4]}
    with pytest.raises(ValidationError) as caught:
        Few.model_validate(data)
    said = {problem.where: problem.text for (problem,) in problems_of(caught.value, data).values()}
    assert said == {"prompts": "needs at least 1 value, not 0.", "sizes": "needs 3 values, not 4."}


def test_true_and_false_are_values_of_every_key_that_takes_them() -> None:
    """`auto` or a boolean is no number."""
    properties = RunConfig.model_json_schema()["$defs"]["MemorySection"]["properties"]
    switches = [
        name
        for name, schema in properties.items()
        if "boolean" in {kind.get("type") for kind in (schema, *schema.get("anyOf", []))}
    ]
    assert "offload_activations" in switches
    for name in properties:
        assert bool(booleans_for_numbers({"memory": {name: True}})) == (name not in switches), name


def test_a_text_of_the_wrong_form_is_reported_with_the_pattern() -> None:
    data = {"lora": {"target_layers": [""]}}
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(data)
    (problem,) = (each for found in problems_of(caught.value, data).values() for each in found)
    assert problem.text.startswith("must match the pattern ")
