"""The images that the demo generates: as many as fit into the given time next to the training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from flowloom.demo.captions import COLOURS, SHAPES

SHARE = 0.25
"""Of the time, for generating images."""
ENOUGH_STEPS = 300
"""Updates after which the first colours are usually visible."""
_FREE = (
    "smiling face", "winking face", "kissing face", "crying face", "full moon", "broken heart", "green apple",
    "purple apple", "orange book",
)  # fmt: skip
Asked = tuple[str, str, int]


@dataclass(frozen=True)
class Plan:
    """Prompts and seeds."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    seeds: tuple[int, ...]
    free: tuple[str, ...]
    """Prompts whose images are not judged."""

    @property
    def asked(self) -> list[Asked]:
        """Images of the trained network to judge: colour, shape and seed."""
        return [(c, s, seed) for seed in self.seeds for c, s in product(self.colours, self.shapes)]

    @property
    def baseline(self) -> list[Asked]:
        """Images of the untrained network to judge: one seed is enough for noise."""
        return self.asked[: len(self.colours) * len(self.shapes)]

    @property
    def num_images(self) -> int:
        """The number of images of both networks."""
        return len(self.asked) + len(self.baseline) + len(self.free)

    def __str__(self) -> str:
        prompts, seeds = len(self.baseline), len(self.seeds)
        return f"{prompts} prompts with {seeds} seed{'s' if seeds > 1 else ''} and {len(self.free)} others"


PLANS = (
    Plan(COLOURS, SHAPES, (1, 2, 3), _FREE),
    Plan(COLOURS, SHAPES, (1,), _FREE),
    Plan(("red", "green", "blue"), SHAPES, (1,), _FREE[:3]),
    Plan(("red", "green", "blue"), ("heart",), (1,), ()),
)
"""From the largest to the smallest."""


def fitting(seconds_per_image: float, seconds: float) -> Plan:
    """The largest plan that fits into its share of `seconds`, or the smallest one."""
    return next((plan for plan in PLANS if plan.num_images * seconds_per_image <= SHARE * seconds), PLANS[-1])
