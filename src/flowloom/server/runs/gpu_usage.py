"""What a run's accelerators did while it ran: a note every ten seconds, in its `studio/cards.jsonl`.

The studio notes it, and no trainer: it is there for each of them, and no training step waits for it. Of the
time in which no studio ran there is nothing. A line for a run on one card has about 60 bytes: 0.5 MB a day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from flowloom.files import open_plain, parsed
from flowloom.server.background import on_its_own
from flowloom.server.runs.registry import Shelf
from flowloom.server.system import Card, Gauge

SECONDS_BETWEEN_NOTES = 10.0
FIGURES = ("load_percent", "memory_used_mib", "temperature_c", "power_w")
Figure = float | None
_LONGEST = 65_536


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
        with on_its_own(partial(shelf.notes.__setitem__, run.id)):
            add_note(shelf.path(run.id), now.time, [card for card in now.cards if card.device in run.devices])


def add_note(run_path: Path, time: float, cards: list[Card]) -> None:
    """Add a line to the run's notes; nothing where no card is seen."""
    if not cards:
        return
    told = {card.device: [getattr(card, figure) for figure in FIGURES] for card in cards}
    with open_plain(_file(run_path), append=True) as file:
        file.write(f"{json.dumps([round(time, 1), told], separators=(',', ':'))}\n".encode())


def read_loads(run_path: Path, max_points: int) -> CardLoads:
    """The whole run in at most `max_points` stretches; a long run's notes are never in memory together."""
    path = _file(run_path)
    num = sum(1 for _ in _notes(path))
    points = min(num, max_points)
    times: list[float] = []
    cards: dict[str, dict[str, list[Figure]]] = {}
    notes = _notes(path)
    for i in range(points):
        stretch = list(islice(notes, (i + 1) * num // points - i * num // points))
        if not stretch:
            break
        times.append(stretch[-1][0])
        for device in {device for _, told in stretch for device in told} - cards.keys():
            cards[device] = {figure: [None] * i for figure in FIGURES}
        for device, curves in cards.items():
            mine = [told[device] for _, told in stretch if device in told]
            for number, figure in enumerate(FIGURES):
                curves[figure].append(_mean([values[number] for values in mine]))
    devices = sorted(cards, key=lambda name: (len(name), name))
    return CardLoads(
        times=times, cards={device: CardCurves.model_validate(cards[device]) for device in devices}
    )


def _file(run_path: Path) -> Path:
    return run_path / "studio" / "cards.jsonl"


def _notes(path: Path) -> Iterator[tuple[float, dict[str, list[Figure]]]]:
    """Those that are whole: a machine that lost its power may have left part of a line."""
    try:
        file = open_plain(path)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(_LONGEST):
            if note := _note(line):
                yield note


def _note(line: bytes) -> tuple[float, dict[str, list[Figure]]] | None:
    try:
        content = parsed(line)
    except ValueError:
        return None
    if not isinstance(content, list) or len(content) != 2:
        return None
    when, told = content
    is_ours = (
        isinstance(when, int | float) and isinstance(told, dict) and all(map(_are_figures, told.values()))
    )
    return (when, told) if is_ours else None


def _are_figures(values: Any) -> bool:
    is_list = isinstance(values, list) and len(values) == len(FIGURES)
    return is_list and all(isinstance(value, int | float | None) for value in values)


def _mean(values: list[Figure]) -> Figure:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None
