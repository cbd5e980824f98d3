"""Runs one script of sd-scripts in its own Python, and says and hears more than it does by itself.

`python hooks.py RUN_DIR CHECKOUT SCRIPT ARGUMENT...`: each update is told on standard output, where the run's
keeper reads it; `control/stop`, `control/checkpoint` and `control/sample` in the run directory are obeyed at
the next one, by the script's own saving and drawing. What another version of sd-scripts lacks is told once,
and the script runs without. Stands alone: nothing of Flowloom is installed there.
"""

import copy
import json
import os
import re
import runpy
import sys
from collections import deque
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

MARK = "flowloom-event: "
BASE, BASE_EPOCH = "FLOWLOOM_BASE_STEP", "FLOWLOOM_BASE_EPOCH"
"""Environment: updates and epochs of earlier sittings; sd-scripts counts from 0 each time."""
NOTE = "flowloom.json"
"""In a state, written last: the updates behind it, of all sittings."""
SAVES = {"save_every_n_steps": None, "save_state": True}
"""Options that make a script save after this update."""
DRAW, RESUME = "sample_images", "resume_from_local_or_hf_if_specified"
"""Functions of sd-scripts' library that every script calls."""
NOTES = {".json", ".tmp"}
OPTIONS = {
    "n": "negative", "w": "width", "h": "height", "s": "steps", "d": "seed", "l": "scale", "g": "guidance",
}  # fmt: skip
"""Of a line of prompts."""
DRAWS = {"sample_every_n_steps": 1, "sample_every_n_epochs": None}


def say(kind, **fields):
    """Print an event on a line."""
    sys.stdout.write(f"\n{MARK}{json.dumps({'kind': kind, **fields})}\n")
    sys.stdout.flush()


class Hooks:
    """Hooks around each update."""

    def __init__(self, run_dir, output_dir, output_name):
        self.control = Path(run_dir) / "control"
        self.output_dir, self.output_name = Path(output_dir), output_name
        self.base = int(os.environ.get(BASE, "0"))
        self.epoch = int(os.environ.get(BASE_EPOCH, "0"))
        self.rates = []
        """Of the next update, by group of parameters."""
        self.step = self.told = self.heard = 0
        self.accelerator: Any = None
        self.args: Any = None
        self.before = {}
        self.losses = deque(maxlen=100)
        self.has_begun = self.is_stopping = False
        self.saved = self.results()

    def install(self):
        """Listen where every script makes its accelerator, saves its state, and logs its losses."""
        try:
            accelerator_class = import_module("accelerate").Accelerator
            tracker_class = import_module("accelerate.tracking").TensorBoardTracker
            begin, save, log = accelerator_class.__init__, accelerator_class.save_state, tracker_class.log
        except (ImportError, AttributeError) as error:
            say("warning", message=f"Its log alone is read, and nothing heard: {error}.")
            return
        hooks = self

        def remember(accelerator, *args, **kwargs):
            begin(accelerator, *args, **kwargs)
            hooks.accelerator = accelerator
            hooks.attach()

        def noted(accelerator, output_dir=None, *args, **kwargs):
            done = save(accelerator, output_dir, *args, **kwargs)
            if output_dir:
                note = {"step": hooks.base + hooks.step, "epoch": hooks.epoch}
                (Path(output_dir) / NOTE).write_text(json.dumps(note))
            return done

        def told(tracker, values, step=None, **kwargs):
            log(tracker, values, step=step, **kwargs)
            hooks.after(values, step)

        accelerator_class.__init__, accelerator_class.save_state = remember, noted
        tracker_class.log = told

    def attach(self):
        """Hook into sd-scripts' library once: where previews are generated, and where a state is read."""
        if self.has_begun:
            return
        self.has_begun = True
        library = [module for name, module in sys.modules.items() if name.startswith("library.")]
        draws = [module for module in library if callable(getattr(module, DRAW, None))]
        for module in draws:
            setattr(module, DRAW, self.around(getattr(module, DRAW)))
        resumes = [module for module in library if hasattr(module, RESUME)]
        for module in resumes:
            setattr(module, RESUME, self.shortened(getattr(module, RESUME)))
        limits = [] if draws else ["generate no previews on request"]
        if self.base and not resumes:
            limits.append(f"repeat the {self.base} steps that are done already")
        if limits:
            say(
                "warning",
                message=f"This sd-scripts is only partly supported. It will {', and '.join(limits)}.",
            )

    def around(self, draw):
        """A `sample_images` that every script calls after each update, before it saves."""

        def drawn(*given, **named):
            if len(given) < 4:
                # Of another version, which says it by name.
                return draw(*given, **named)
            (accelerator, args, epoch, steps), rest = given[:4], given[4:]
            pictures = self.pictures()
            args = self.heeded(accelerator, args, epoch, steps)
            draw(accelerator, args, epoch, steps, *rest, **named)
            new = sorted(self.pictures() - pictures)
            if new:
                # A note is worth less than the run.
                with suppress(OSError, ValueError):
                    self.note_prompts(new, Path(args.sample_prompts))
            for path in new:
                say("sampled", step=self.base + self.step, dir=path)
            return None

        return drawn

    def heeded(self, accelerator, args, epoch, steps):
        """The arguments to draw with, before the first update, after each, and after each epoch."""
        if not steps:
            # What is logged after an update is the rate of the next one.
            self.rates = rates_of(accelerator)
        elif epoch is not None:
            self.epoch += 1
        else:
            self.updated(args, int(steps))
            if self.takes("sample"):
                if args.sample_prompts:
                    return altered(args, DRAWS)
                say("warning", message="There is nothing to draw: its configuration has no prompts.")
        return args

    def note_prompts(self, paths, prompts):
        """Write the settings of each preview next to it; file names do not contain the prompt."""
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        notes = self.output_dir / "sample" / "samples.json"
        known = json.loads(notes.read_text()) if notes.exists() else []
        for path in paths:
            number = re.search(r"_(\d+)_\d{14}", path)
            line = lines[int(number[1])] if number and int(number[1]) < len(lines) else ""
            known.append({"file": Path(path).name, "step": self.base + self.step, **drawn_by(line)})
        partial = notes.with_suffix(".tmp")
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(notes)

    def shortened(self, resume):
        """Reading a state, if there is one; then what is left is trained, by the schedule of the whole."""

        def resumed(accelerator, args, *rest, **kwargs):
            resume(accelerator, args, *rest, **kwargs)
            args.max_train_steps = max(1, args.max_train_steps - self.base)
            say("started", resumed_from=self.base or None, device=str(accelerator.device))

        return resumed

    def updated(self, args, step):
        """An update was made, and the script is about to save if it has to: see that it does."""
        self.step = self.heard = step
        self.is_stopping = self.takes("stop")
        if self.takes("checkpoint") or self.is_stopping:
            self.args, self.before = args, {name: getattr(args, name, None) for name in SAVES}
            vars(args).update(SAVES, save_every_n_steps=step)

    def after(self, values, step):
        """A loss was logged: tell it, and what was saved; end if that was asked for."""
        loss = values.get("loss/current", values.get("loss"))
        if loss is None or not step:
            return
        if self.before:
            vars(self.args).update(self.before)
            self.before = {}
        self.step = int(step)
        self.tell(values, loss)
        if self.heard != self.step:
            self.is_stopping = self.takes("stop")
            if self.takes("checkpoint") or self.is_stopping:
                self.save()
        self.tell_saved()
        if self.is_stopping:
            say("stopped", step=self.base + self.step)
            raise SystemExit(0)

    def tell(self, values, loss):
        """Metrics of an update; further logs before the next one are ignored."""
        if self.step == self.told:
            return
        self.told = self.step
        self.losses.append(float(loss))
        say(
            "step",
            step=self.base + self.step,
            epoch=self.epoch,
            loss=float(loss),
            loss_smooth=float(values.get("loss/average", sum(self.losses) / len(self.losses))),
            lr=self.rate(values),
        )

    def rate(self, values):
        """The rate that the update used, of the image network where there are several."""
        names = [name for name in values if (name.startswith("lr/") or name == "lr") and "d*lr" not in name]
        if not names:
            return None
        following = float(values[next((name for name in names if "unet" in name), names[0])])
        before, self.rates = self.rates, rates_of(self.accelerator)
        place = self.rates.index(following) if following in self.rates else -1
        return float(before[place]) if 0 <= place < len(before) else following

    def tell_saved(self):
        """New folders next to the states."""
        found = self.results()
        for path in sorted(found - self.saved):
            say("saved", step=self.base + self.step, dir=path)
        self.saved = found

    def results(self):
        """Weights in the output folder."""
        return {str(path) for path in self.output_dir.glob("*.safetensors") if ".tmp." not in path.name}

    def pictures(self):
        """All that was drawn."""
        return {str(path) for path in self.output_dir.glob("sample/*") if path.suffix not in NOTES}

    def takes(self, what):
        """True if `what` was requested since the last call."""
        try:
            (self.control / what).unlink()
        except FileNotFoundError:
            return False
        return True

    def save(self):
        """Write the state and an adapter's weights, where the script's own saving is out of reach."""
        place = self.output_dir / f"{self.output_name}-step{self.step:08d}"
        partial = Path(f"{place}-state.tmp")
        self.accelerator.save_state(str(partial))
        partial.rename(f"{place}-state")
        for model in self.accelerator._models:
            network = self.accelerator.unwrap_model(model)
            if hasattr(network, "save_weights"):
                network.save_weights(f"{place}.tmp.safetensors", None, {})
                Path(f"{place}.tmp.safetensors").rename(f"{place}.safetensors")


def rates_of(accelerator):
    """The rates of the next update, by group of parameters; none where its schedulers are not known."""
    schedulers = getattr(accelerator, "_schedulers", None)
    return [float(rate) for rate in schedulers[0].get_last_lr()] if schedulers else []


def drawn_by(line):
    """A line of prompts as the metadata of a preview."""
    prompt, *options = line.split(" --")
    words = (option.split(" ", 1) for option in options)
    told = {OPTIONS[word[0]]: word[1] for word in words if len(word) == 2 and word[0] in OPTIONS}
    numbers = {name: float(value) for name, value in told.items() if value.replace(".", "", 1).isdigit()}
    whole = {name: int(value) for name, value in numbers.items() if value.is_integer()}
    return {"prompt": prompt, **told, **numbers, **whole}


def altered(args, changes):
    """Arguments with others than they were."""
    args = copy.copy(args)
    vars(args).update(changes)
    return args


def value_of(arguments, name):
    """The value after --name."""
    for i, word in reversed(list(enumerate(arguments))):
        if word == f"--{name}":
            return arguments[i + 1]
    return None


def main():
    """Run the script that the command line names."""
    run_dir, checkout, script, *arguments = sys.argv[1:]
    # Its own folder is ours, and its names are not sd-scripts'.
    sys.path[:1] = [checkout]
    hooks = Hooks(run_dir, value_of(arguments, "output_dir"), value_of(arguments, "output_name"))
    hooks.install()
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(checkout) / script), run_name="__main__")
    hooks.tell_saved()


if __name__ == "__main__":
    main()
