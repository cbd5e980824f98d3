"""Prompt files of sd-scripts: lines with options, TOML, or JSON."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from flowloom.json_types import is_array, is_object
from flowloom.text_files import without_mark
from flowloom.trainers.kohya.imports.result import Imported
from flowloom.trainers.kohya.prompt_options import WORDS, Prompt, read_prompt

_IGNORED = "sd-scripts has no such prompt option here"


def read_prompts(text: str, found: Imported, name: str) -> list[str]:
    """The prompts of a file, as lines with options; reports what is not understood in `found`."""
    lines: list[str] = []
    for number, entry in enumerate(_entries(without_mark(text))):
        prompt, unknown = _prompt(entry)
        for option, value in unknown.items():
            found.leave(f"{name}.{number}.{option}", value, _IGNORED)
        if prompt.text:
            lines.append(prompt.line)
        elif entry:
            found.leave(f"{name}.{number}", entry, "has no prompt")
    return lines


def _entries(text: str) -> list[Any]:
    """Lines, or the tables of TOML and JSON."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if is_object(content) or is_array(content):
        return content if is_array(content) else [content]
    try:
        prompt = tomllib.loads(text).get("prompt")
    except tomllib.TOMLDecodeError:
        prompt = None
    if is_object(prompt):
        subsets = prompt.pop("subset", [{}])
        return [prompt | subset if is_object(subset) else subset for subset in subsets]
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _prompt(entry: Any) -> tuple[Prompt, dict[str, Any]]:
    """A prompt, and options that sd-scripts does not know, with their values."""
    if not is_object(entry):
        prompt = read_prompt(str(entry))
        pairs = (option.partition(" ") for option in prompt.unknown)
        return prompt, {option: value for option, _, value in pairs}
    known = {name: value for name, value in entry.items() if name in WORDS}
    options = "".join(f" --{WORDS[name]} {_plain(value)}" for name, value in known.items() if value != "")
    prompt = read_prompt(f"{_plain(entry.get('prompt', ''))}{options}")
    strange = {name: value for name, value in entry.items() if name not in {*WORDS, "prompt", "enum"}}
    refused = {name: known[name] for name in known if WORDS[name] not in prompt.options and known[name] != ""}
    return prompt, strange | refused


def _plain(value: Any) -> str:
    return " ".join(str(value).split())
