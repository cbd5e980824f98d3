"""The trainer backends, by name."""

from flowloom.trainers.base import TrainerBackend
from flowloom.trainers.engine import TRAINER as FLOW
from flowloom.trainers.flow_upstream.trainer import TRAINER as FLOW_UPSTREAM
from flowloom.trainers.kohya.trainer import TRAINER as KOHYA

ALL: dict[str, TrainerBackend] = {trainer.name: trainer for trainer in (FLOW, KOHYA, FLOW_UPSTREAM)}
