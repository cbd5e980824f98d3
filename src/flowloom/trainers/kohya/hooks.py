"""Runs one script of sd-scripts in its own Python, and says and hears more than it does by itself.

`python hooks.py RUN_DIR CHECKOUT SCRIPT ARGUMENT...`: each update is told on standard output, where the run's
keeper reads it; `control/stop` and `control/checkpoint` in the run directory are obeyed at the next one, with
all that a resume needs. Stands alone: nothing of Flowloom is installed there.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

MARK = "flowloom-event: "
BASE = "FLOWLOOM_BASE_STEP"
"""Environment: updates of earlier sittings; sd-scripts counts from 0 each time."""


def say(kind, **fields):
    """One event, on a line of its own."""
    sys.stdout.write(f"\n{MARK}{json.dumps({'kind': kind, **fields})}\n")
    sys.stdout.flush()


class Hooks:
    """What is done after each update."""

    def __init__(self, run_dir, output_dir, output_name):
        self.control = Path(run_dir) / "control"
        self.output_dir, self.output_name = Path(output_dir), output_name
        self.base = int(os.environ.get(BASE, "0"))
        self.accelerator: Any = None

    def install(self):
        """Listen where every script logs its losses."""
        from importlib import import_module

        accelerator_class = import_module("accelerate").Accelerator
        tracker_class = import_module("accelerate.tracking").TensorBoardTracker
        hooks = self
        begin, log = accelerator_class.__init__, tracker_class.log

        def remember(accelerator, *args, **kwargs):
            begin(accelerator, *args, **kwargs)
            hooks.accelerator = accelerator

        def told(tracker, values, step=None, **kwargs):
            log(tracker, values, step=step, **kwargs)
            hooks.after(values, step)

        accelerator_class.__init__, tracker_class.log = remember, told

    def after(self, values, step):
        """An update was logged: tell it, and do what was asked for."""
        loss = values.get("loss/current", values.get("loss"))
        if loss is None or step is None:
            return
        rates = [value for name, value in values.items() if name.startswith("lr/") or name == "lr"]
        say(
            "step",
            step=self.base + int(step),
            loss=float(loss),
            loss_smooth=float(values.get("loss/average", values.get("avr_loss", loss))),
            lr=float(rates[0]) if rates else None,
        )
        if self.takes("checkpoint"):
            self.save(int(step))
        if self.takes("stop"):
            self.save(int(step))
            raise SystemExit(0)

    def takes(self, what):
        """Whether `what` was asked for since the last look."""
        try:
            (self.control / what).unlink()
        except FileNotFoundError:
            return False
        return True

    def save(self, step):
        """Write the state, and an adapter's weights beside it."""
        place = self.output_dir / f"{self.output_name}-step{step:08d}"
        partial = Path(f"{place}-state.tmp")
        self.accelerator.save_state(str(partial))
        partial.rename(f"{place}-state")
        for model in self.accelerator._models:
            network = self.accelerator.unwrap_model(model)
            if hasattr(network, "save_weights"):
                network.save_weights(f"{place}.tmp.safetensors", None, {})
                Path(f"{place}.tmp.safetensors").rename(f"{place}.safetensors")
                say("saved", dir=f"{place}.safetensors")


def value_of(arguments, name):
    """What follows --name, or stands in the configuration."""
    for i, word in reversed(list(enumerate(arguments))):
        if word == f"--{name}":
            return arguments[i + 1]
    return None


def main():
    """Run the script that the command line names."""
    run_dir, checkout, script, *arguments = sys.argv[1:]
    sys.path.insert(0, checkout)
    Hooks(run_dir, value_of(arguments, "output_dir"), value_of(arguments, "output_name")).install()
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(checkout) / script), run_name="__main__")


if __name__ == "__main__":
    main()
