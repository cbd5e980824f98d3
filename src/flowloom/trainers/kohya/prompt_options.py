"""A line of sd-scripts' prompt file: the prompt, and its options behind ` --`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WHOLE, _NUMBER = re.compile(r"\d+"), re.compile(r"\d+(\.\d*)?|\.\d+")
_NAME = re.compile(r"[\w+]+")
OPTIONS = {
    "n": re.compile(r".+"),
    "w": _WHOLE,
    "h": _WHOLE,
    "s": _WHOLE,
    "d": _WHOLE,
    "l": _NUMBER,
    "g": _NUMBER,
    "ss": _NAME,
    "ctr": _NUMBER,
    "rcfg": _NUMBER,
    "fs": _NUMBER,
}
"""Negative prompt, width, height, steps, seed, scale, guidance, sampler; more scales for some families."""
WORDS = {
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "sample_steps": "s",
    "seed": "d",
    "scale": "l",
    "guidance_scale": "g",
    "sample_sampler": "ss",
    "cfg_trunc_ratio": "ctr",
    "renorm_cfg": "rcfg",
    "flow_shift": "fs",
}
"""Names of the options in TOML and JSON."""


@dataclass
class Prompt:
    """One image to generate."""

    text: str
    options: dict[str, str] = field(default_factory=dict)
    """Options by their names in OPTIONS."""
    unknown: list[str] = field(default_factory=list)
    """Options that sd-scripts does not know, or whose value it cannot read; it ignores them."""

    @property
    def line(self) -> str:
        """The prompt with its options, as sd-scripts reads it."""
        return self.text + "".join(f" --{name} {value}" for name, value in self.options.items())


def read_prompt(line: str) -> Prompt:
    """The prompt of one line; of a repeated option, the last counts."""
    text, *parts = f" {line}".split(" --")
    found = Prompt(text.strip())
    for part in parts:
        name, _, value = part.partition(" ")
        kind, value = OPTIONS.get(name.lower()), value.strip()
        if kind and kind.fullmatch(value):
            found.options[name.lower()] = value
        else:
            found.unknown.append(f"--{part.strip()}")
    return found
