"""Start runs on machines of a cluster: thin files above torchrun, submitted with the cluster's own tool."""

from flowloom.launchers.base import Launcher
from flowloom.launchers.local import Local
from flowloom.launchers.ray import Ray
from flowloom.launchers.skypilot import SkyPilot
from flowloom.launchers.slurm import Slurm

LAUNCHERS: dict[str, Launcher] = {each.name: each for each in (Local(), Slurm(), Ray(), SkyPilot())}
"""Launchers by name."""
