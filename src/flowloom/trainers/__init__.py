from flowloom.trainers.flow import TRAINER

ALL = {TRAINER.name: TRAINER}
