"""The trainers that the studio drives: one file each."""

from flowloom.trainers.base import Trainer
from flowloom.trainers.flow import TRAINER

ALL: dict[str, Trainer] = {TRAINER.name: TRAINER}
