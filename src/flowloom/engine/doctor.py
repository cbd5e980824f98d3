"""`flowloom doctor`: the state of this machine, in a few lines."""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import socket
import sys
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.request import ProxyHandler, build_opener

import flowloom
from flowloom.config.secrets import read_secrets
from flowloom.errors import ConfigError
from flowloom.import_warnings import quiet_imports
from flowloom.trainers import ALL
from flowloom.trainers.missing_packages import states

NEEDED = {
    "diffusers": "diffusers",
    "transformers": "transformers",
    "peft": "peft",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "pyvips": "pyvips",
    "pillow": "PIL",
    "lycoris-lora": "lycoris",
}
OPTIONAL = ("bitsandbytes", "torchao", "wandb", "tensorboard", "aim")
LEAST_FREE_GIB = 5
PORT, LOOPBACK = 7860, "127.0.0.1"


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    text: str
    is_ok: bool = True


def run_checks(port: int = PORT, host: str = LOOPBACK) -> list[Finding]:
    """Python, torch, the device, packages, other trainers, secrets, disk, and the studio's port."""
    python = Finding("python", f"{platform.python_version()} at {sys.executable}")
    return [
        Finding("flowloom", flowloom.__version__),
        python,
        *_torch(),
        *_speeds(),
        *(_package(name, module) for name, module in NEEDED.items()),
        Finding("optional", ", ".join(f"{name} {_version(name) or '-'}" for name in OPTIONAL)),
        *(finding for name in ALL for finding in trainer_findings(name)),
        _secrets(),
        _disk(),
        port_finding(port, host),
    ]


def trainer_findings(trainer: str) -> list[Finding]:
    """The checkouts of another trainer, one line each; nothing for our engine."""
    if ALL[trainer].writes_events:
        return []
    return [
        Finding(trainer, f"{text}; missing: {', '.join(missing)}" if missing else text, is_ok=not missing)
        for _, text, missing in states(trainer)
    ]


def _torch() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", f"cannot be imported ({error}): run ./loom setup", is_ok=False)]
    found = [Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")]
    for index in range(torch.cuda.device_count()):
        device = cast("Any", torch.cuda.get_device_properties(index))
        capability = f"compute capability {device.major}.{device.minor}"
        found.append(
            Finding(
                "device", f"cuda:{index}, {device.name}, {device.total_memory / 2**30:.0f} GiB, {capability}"
            )
        )
    if torch.backends.mps.is_available():
        found.append(Finding("device", "mps"))
    if len(found) == 1:
        found.append(Finding("device", "cpu only: small networks train, the 8.9B one needs a GPU"))
    return found


def _speeds() -> list[Finding]:
    try:
        from flowloom.engine.estimate.speed import speed_of, speeds_path
        from flowloom.models.device import choose_device
    except ImportError:
        return []  # of torch, which is reported
    text = speed_of(choose_device("auto")).source
    return [Finding("speed", f"{text}. To measure again, delete {speeds_path()}")]


def _package(name: str, module: str) -> Finding:
    try:
        with quiet_imports():
            importlib.import_module(module)
    except (ImportError, OSError) as error:
        return Finding(name, f"cannot be imported ({error}): run ./loom setup", is_ok=False)
    return Finding(name, _version(name) or "installed")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _secrets() -> Finding:
    try:
        names = sorted(read_secrets())
    except ConfigError as error:
        return Finding("secrets", str(error), is_ok=False)
    return Finding("secrets", ", ".join(names) or "none set")


def _disk() -> Finding:
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 2**30
    low = f"; less than {LEAST_FREE_GIB} GiB hold few checkpoints" if free < LEAST_FREE_GIB else ""
    return Finding("disk", f"{free:.0f} GiB free at {here}{low}", is_ok=not low)


def port_finding(port: int = PORT, host: str = LOOPBACK) -> Finding:
    """True if a studio can listen on `port` of `host`, or already does."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            reason = error.strerror
        else:
            return Finding("port", f"{port} is free")
    try:
        direct = build_opener(ProxyHandler({}))  # the environment's proxy does not reach this machine
        with direct.open(f"http://{_reached_at(host)}:{port}/api/health", timeout=2) as answer:
            version = json.load(answer)["version"]
    except (OSError, ValueError, LookupError, TypeError, HTTPException):
        return Finding("port", f"{port}: {reason}: choose another with flowloom up --port N", is_ok=False)
    return Finding("port", f"{port}: a studio is running, flowloom {version}")


def _reached_at(host: str) -> str:
    """The address at which this machine reaches a server that listens at `host`."""
    here = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"[{here}]" if ":" in here else here


def main() -> None:
    """The findings as a line of JSON, for the studio at this port and host, which does not import torch."""
    port, host = sys.argv[1:]
    sys.stdout.write(json.dumps([finding._asdict() for finding in run_checks(int(port), host)]) + "\n")


if __name__ == "__main__":
    main()
