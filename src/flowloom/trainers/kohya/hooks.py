"""Run a script of sd-scripts in its own Python, report its progress and act on control files.

`python hooks.py RUN_DIR CHECKOUT SCRIPT ARGUMENT...` writes each step to standard output, where the run's
supervisor reads it. `control/stop`, `control/checkpoint` and `control/sample` of the run directory take
effect at the next step, by the script's own functions. If a version of sd-scripts has no such function, a
warning says so and the script runs without it. This file imports nothing of Flowloom, which is not
installed there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import runpy
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

MARK = "flowloom-event: "
BASE, BASE_EPOCH = "FLOWLOOM_BASE_STEP", "FLOWLOOM_BASE_EPOCH"
"""Environment variables: steps and epochs before this start; sd-scripts counts from 0 each time."""
NOTE = "flowloom.json"
"""A file in a state, written last: the steps and epochs up to it, over all starts."""
SAVES = {"save_every_n_steps": None, "save_state": True}
"""Options that make a script save after the current step."""
SAMPLE, RESUME = "sample_images", "resume_from_local_or_hf_if_specified"
"""Functions of sd-scripts' library that every script calls."""
NOTE_SUFFIXES = {".json", ".tmp"}
OPTIONS = {
    "n": "negative", "w": "width", "h": "height", "s": "steps", "d": "seed", "l": "scale", "g": "guidance",
}  # fmt: skip
"""Options in a line of prompts."""
SAMPLES = {"sample_every_n_steps": 1, "sample_every_n_epochs": None}


def say(kind: str, **fields: Any) -> None:
    """Print an event on a line."""
    sys.stdout.write(f"\n{MARK}{json.dumps({'kind': kind, **fields})}\n")
    sys.stdout.flush()


class Hooks:
    """Hooks around each update."""

    def __init__(self, run_dir: str, output_dir: str, output_name: str) -> None:
        self.control = Path(run_dir) / "control"
        self.output_dir, self.output_name = Path(output_dir), output_name
        self.base = int(os.environ.get(BASE, "0"))
        self.epoch = int(os.environ.get(BASE_EPOCH, "0"))
        self.rates: list[float] = []
        """Learning rates of the next step, by group of parameters."""
        self.step = self.reported_step = self.checked_step = 0
        self.accelerator: Any = None
        self.args = argparse.Namespace()
        self.before: dict[str, Any] = {}
        """Options that a request for a checkpoint has changed."""
        self.losses: deque[float] = deque(maxlen=100)
        self.is_attached = self.is_stopping = False
        self.saved = self.results()

    def install(self) -> None:
        """Hook into the functions by which scripts make the accelerator, save its state and log losses."""
        try:
            accelerator_class = import_module("accelerate").Accelerator
            tracker_class = import_module("accelerate.tracking").TensorBoardTracker
            begin, save, log = accelerator_class.__init__, accelerator_class.save_state, tracker_class.log
        except (ImportError, AttributeError) as error:
            say("warning", message=f"Only the log is read, and requests have no effect: {error}.")
            return
        hooks = self

        def new_accelerator(accelerator: Any, *args: Any, **kwargs: Any) -> None:
            begin(accelerator, *args, **kwargs)
            hooks.accelerator = accelerator
            hooks.attach()

        def save_with_note(accelerator: Any, output_dir: Any = None, *args: Any, **kwargs: Any) -> Any:
            done = save(accelerator, output_dir, *args, **kwargs)
            if output_dir:
                note = {"step": hooks.base + hooks.step, "epoch": hooks.epoch}
                (Path(output_dir) / NOTE).write_text(json.dumps(note))
            return done

        def log_and_report(tracker: Any, values: Mapping[str, Any], step: Any = None, **kwargs: Any) -> None:
            log(tracker, values, step=step, **kwargs)
            hooks.logged(values, step)

        accelerator_class.__init__, accelerator_class.save_state = new_accelerator, save_with_note
        tracker_class.log = log_and_report

    def attach(self) -> None:
        """Hook into sd-scripts' library once, where it generates previews and reads a state."""
        if self.is_attached:
            return
        self.is_attached = True
        library = [module for name, module in sys.modules.items() if name.startswith("library.")]
        samplers = [module for module in library if callable(getattr(module, SAMPLE, None))]
        for module in samplers:
            setattr(module, SAMPLE, self.sampling(getattr(module, SAMPLE)))
        resumers = [module for module in library if hasattr(module, RESUME)]
        for module in resumers:
            setattr(module, RESUME, self.resuming(getattr(module, RESUME)))
        limits = [] if samplers else ["generate no previews on request"]
        if self.base and not resumers:
            limits.append(f"repeat the {self.base} steps that are done already")
        if limits:
            say(
                "warning",
                message=f"This sd-scripts is only partly supported. It will {', and '.join(limits)}.",
            )

    def sampling(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        """A `sample_images`, which every script calls after each step and before it saves."""

        def sample_and_report(*given: Any, **named: Any) -> Any:
            if len(given) < 4:
                # Another version, which passes its arguments by name.
                return sample(*given, **named)
            (accelerator, args, epoch, steps), rest = given[:4], given[4:]
            before = self.previews()
            args = self.sampling_args(accelerator, args, epoch, steps)
            sample(accelerator, args, epoch, steps, *rest, **named)
            new = sorted(self.previews() - before)
            if new:
                # Without the notes, the run still continues.
                with suppress(OSError, ValueError):
                    self.note_prompts(new, Path(args.sample_prompts))
            for path in new:
                say("sampled", step=self.base + self.step, dir=path)
            return None

        return sample_and_report

    def sampling_args(
        self, accelerator: Any, args: argparse.Namespace, epoch: Any, steps: Any
    ) -> argparse.Namespace:
        """The arguments for previews: before the first step, after each step, and after each epoch."""
        if not steps:
            # sd-scripts logs the next step's learning rate after a step.
            self.rates = rates_of(accelerator)
        elif epoch is not None:
            self.epoch += 1
        else:
            self.updated(args, int(steps))
            if self.takes("sample"):
                if args.sample_prompts:
                    return altered(args, SAMPLES)
                say("warning", message="No previews: the configuration has no prompts.")
        return args

    def note_prompts(self, paths: Iterable[str], prompts: Path) -> None:
        """Write the settings of each preview next to it; file names do not contain the prompt."""
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        notes = self.output_dir / "sample" / "samples.json"
        entries: list[dict[str, Any]] = json.loads(notes.read_text()) if notes.exists() else []
        for path in paths:
            number = re.search(r"_(\d+)_\d{14}", path)
            line = lines[int(number[1])] if number and int(number[1]) < len(lines) else ""
            entries.append({"file": Path(path).name, "step": self.base + self.step, **settings_of(line)})
        partial = notes.with_suffix(".tmp")
        partial.write_text(json.dumps(entries, indent=1))
        partial.replace(notes)

    def resuming(self, resume: Callable[..., Any]) -> Callable[..., None]:
        """A `resume` that reads a state, if there is one, and shortens the run to the remaining steps."""

        def resume_and_report(accelerator: Any, args: argparse.Namespace, *rest: Any, **kwargs: Any) -> None:
            resume(accelerator, args, *rest, **kwargs)
            args.max_train_steps = max(1, args.max_train_steps - self.base)
            say("started", resumed_from=self.base or None, device=str(accelerator.device))

        return resume_and_report

    def updated(self, args: argparse.Namespace, step: int) -> None:
        """After a step, and before the script saves: make it save if that was requested."""
        self.step = self.checked_step = step
        self.is_stopping = self.takes("stop")
        if self.takes("checkpoint") or self.is_stopping:
            self.args, self.before = args, {name: getattr(args, name, None) for name in SAVES}
            vars(args).update(SAVES, save_every_n_steps=step)

    def logged(self, values: Mapping[str, Any], step: Any) -> None:
        """After a loss was logged: report it and new files, and end if that was requested."""
        loss = values.get("loss/current", values.get("loss"))
        if loss is None or not step:
            return
        if self.before:
            vars(self.args).update(self.before)
            self.before = {}
        self.step = int(step)
        self.report_step(values, float(loss))
        if self.checked_step != self.step:
            self.is_stopping = self.takes("stop")
            if self.takes("checkpoint") or self.is_stopping:
                self.save()
        self.report_saved()
        if self.is_stopping:
            say("stopped", step=self.base + self.step)
            raise SystemExit(0)

    def report_step(self, values: Mapping[str, Any], loss: float) -> None:
        """Metrics of a step; further logs before the next one are ignored."""
        if self.step == self.reported_step:
            return
        self.reported_step = self.step
        self.losses.append(loss)
        say(
            "step",
            step=self.base + self.step,
            epoch=self.epoch,
            loss=loss,
            loss_smooth=float(values.get("loss/average", sum(self.losses) / len(self.losses))),
            lr=self.rate(values),
        )

    def rate(self, values: Mapping[str, Any]) -> float | None:
        """The learning rate of the step; if there are several, that of the image network."""
        names = [name for name in values if (name.startswith("lr/") or name == "lr") and "d*lr" not in name]
        if not names:
            return None
        following = float(values[next((name for name in names if "unet" in name), names[0])])
        before, self.rates = self.rates, rates_of(self.accelerator)
        group = self.rates.index(following) if following in self.rates else -1
        return before[group] if 0 <= group < len(before) else following

    def report_saved(self) -> None:
        """Report new files of weights."""
        results = self.results()
        for path in sorted(results - self.saved):
            say("saved", step=self.base + self.step, dir=path)
        self.saved = results

    def results(self) -> set[str]:
        """Weights in the output folder."""
        return {str(path) for path in self.output_dir.glob("*.safetensors") if ".tmp." not in path.name}

    def previews(self) -> set[str]:
        """All previews in the output folder."""
        return {str(path) for path in self.output_dir.glob("sample/*") if path.suffix not in NOTE_SUFFIXES}

    def takes(self, control: str) -> bool:
        """True if `control` was requested since the last call; clears the request."""
        try:
            (self.control / control).unlink()
        except FileNotFoundError:
            return False
        return True

    def save(self) -> None:
        """Write the state and an adapter's weights if the script's own saving cannot be hooked."""
        stem = self.output_dir / f"{self.output_name}-step{self.step:08d}"
        partial = Path(f"{stem}-state.tmp")
        self.accelerator.save_state(str(partial))
        partial.rename(f"{stem}-state")
        for model in self.accelerator._models:
            network = self.accelerator.unwrap_model(model)
            if hasattr(network, "save_weights"):
                network.save_weights(f"{stem}.tmp.safetensors", None, {})
                Path(f"{stem}.tmp.safetensors").rename(f"{stem}.safetensors")


def rates_of(accelerator: Any) -> list[float]:
    """Learning rates of the next step, by group of parameters; empty if the schedulers are unknown."""
    schedulers = getattr(accelerator, "_schedulers", None)
    return [float(rate) for rate in schedulers[0].get_last_lr()] if schedulers else []


def settings_of(line: str) -> dict[str, Any]:
    """A line of prompts as the metadata of a preview."""
    prompt, *options = line.split(" --")
    pairs = (option.split(" ", 1) for option in options)
    texts = {OPTIONS[pair[0]]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in OPTIONS}
    numbers = {name: float(value) for name, value in texts.items() if value.replace(".", "", 1).isdigit()}
    integers = {name: int(value) for name, value in numbers.items() if value.is_integer()}
    return {"prompt": prompt, **texts, **numbers, **integers}


def altered(args: argparse.Namespace, changes: Mapping[str, Any]) -> argparse.Namespace:
    """A copy of `args` with `changes`."""
    args = copy.copy(args)
    vars(args).update(changes)
    return args


def value_of(arguments: Sequence[str], name: str) -> str:
    """The last value of --name."""
    last = max(i for i, argument in enumerate(arguments) if argument == f"--{name}")
    return arguments[last + 1]


def main() -> None:
    """Run the script that the command line names."""
    run_dir, checkout, script, *arguments = sys.argv[1:]
    # Python puts this file's folder first, whose modules are not sd-scripts'.
    sys.path[:1] = [checkout]
    hooks = Hooks(run_dir, value_of(arguments, "output_dir"), value_of(arguments, "output_name"))
    hooks.install()
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(checkout) / script), run_name="__main__")
    hooks.report_saved()


if __name__ == "__main__":
    main()
