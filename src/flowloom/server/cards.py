"""What a run's accelerators did while it ran: a note every ten seconds, in its `studio/cards.jsonl`.

The studio notes it, and no trainer: it is there for each of them, and no training step waits for it. Of the
time in which no studio ran there is nothing. A line for a run on one card has about 60 bytes: 0.5 MB a day.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from flowloom.server.shelf import Shelf
from flowloom.server.system import Card, Gauge

SECONDS_BETWEEN_NOTES = 10.0
FIGURES = ("load_percent", "memory_used_mib", "temperature_c", "power_w")
Figure = float | None


class CardCurves(BaseModel):
    """One card's curves, a value for each time; null is what its driver did not tell."""

    load_percent: list[Figure]
    memory_used_mib: list[Figure]
    temperature_c: list[Figure]
    power_w: list[Figure]


class CardLoads(BaseModel):
    """What a run's cards did."""

    times: list[float] = Field(description="Of the last note of each stretch, in seconds since 1970.")
    cards: dict[str, CardCurves] = Field(description="By device: the mean of each stretch.")


def note_loads(shelf: Shelf, gauge: Gauge) -> None:
    """Note for each run that runs what its cards do now; the driver is asked only if there is such a run."""
    runs = [run for run in shelf.store.with_states("running", "stopping") if set(run.devices) - {"cpu"}]
    if not runs:
        return
    now = gauge.read()
    for run in runs:
        add_note(shelf.path(run.id), now.time, [card for card in now.cards if card.device in run.devices])


def add_note(run_path: Path, time: float, cards: list[Card]) -> None:
    """Add a line to the run's notes; nothing where no card is seen."""
    if not cards:
        return
    told = {card.device: [getattr(card, figure) for figure in FIGURES] for card in cards}
    with _file(run_path).open("a", encoding="utf-8") as file:
        file.write(json.dumps([round(time, 1), told], separators=(",", ":")) + "\n")


def read_loads(run_path: Path, max_points: int) -> CardLoads:
    """The whole run in at most `max_points` stretches."""
    notes = _notes(_file(run_path))
    points = min(len(notes), max_points)
    edges = [i * len(notes) // max(points, 1) for i in range(points + 1)]
    stretches = [notes[begin:end] for begin, end in pairwise(edges)]
    devices = sorted({device for _, told in notes for device in told}, key=lambda name: (len(name), name))
    return CardLoads(
        times=[stretch[-1][0] for stretch in stretches],
        cards={
            device: CardCurves.model_validate(
                {
                    figure: [
                        _mean([told[device][i] for _, told in stretch if device in told])
                        for stretch in stretches
                    ]
                    for i, figure in enumerate(FIGURES)
                }
            )
            for device in devices
        },
    )


def _file(run_path: Path) -> Path:
    return run_path / "studio" / "cards.jsonl"


def _notes(path: Path) -> list[tuple[float, dict[str, list[Figure]]]]:
    """Those that are whole: a machine that lost its power may have left part of a line."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            content: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, list) and len(content) == 2:
            found.append((content[0], content[1]))
    return found


def _mean(values: list[Figure]) -> Figure:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None
