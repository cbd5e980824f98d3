"""Places: clusters, or parts of them, as devices of a run, such as `slurm:gpu`."""

from __future__ import annotations

from collections.abc import Sequence

from flowloom.launchers import LAUNCHERS
from flowloom.launchers.base import Launcher


def place_of(devices: Sequence[str]) -> tuple[Launcher, dict[str, str]] | None:
    """The launcher and the option that a device such as `slurm:gpu` names; None for other devices."""
    if len(devices) != 1:
        return None
    name, _, value = devices[0].partition(":")
    launcher = LAUNCHERS.get(name)
    return (launcher, {launcher.place_option: value}) if launcher and value else None
