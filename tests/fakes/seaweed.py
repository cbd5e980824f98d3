"""A real object store: SeaweedFS, started on free ports and ended by its process id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

if TYPE_CHECKING:
    from flowloom.storage.base import StorageSection

KEY, SECRET = "loom-test-key", "loom-test-s3cr3t-of-nobody"
BUCKET = "loom"
PORTS = ("master", "volume", "filer", "s3", "admin")
STARTS_WITHIN_S = 60


@dataclass(frozen=True)
class Seaweed:
    """Where it listens."""

    endpoint: str
    pid: int
    admin: tuple[str, ...] = ()
    """Options of `weed shell` that reach it."""
    key: str = KEY
    secret: str = SECRET
    bucket: str = BUCKET

    @property
    def environ(self) -> dict[str, str]:
        """The environment that gives a process access."""
        return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    def give_keys(self, key: str, secret: str, actions: str = "Read,Write,List") -> None:
        """Give access to clients with these keys."""
        self._configure(f"-access_key {key} -secret_key {secret} -buckets {BUCKET} -actions {actions}")

    def revoke_keys(self, key: str) -> None:
        """Delete keys that were given."""
        self._configure(f"-access_key {key} -delete")

    def _configure(self, arguments: str) -> None:
        command = [weed_path() or "weed", "shell", *self.admin]
        line = f"s3.configure -user tester-{arguments.split()[1]} {arguments} -apply\n"
        subprocess.run(command, input=line, text=True, capture_output=True, check=True, timeout=60)


def weed_path() -> str | None:
    """Where its program is; None where it has no build for this machine."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def free_ports(number: int) -> list[int]:
    """Free ports, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running_seaweed(folder: Path) -> Iterator[Seaweed]:
    """SeaweedFS with its files in `folder`, until the block ends."""
    weed = weed_path()
    if weed is None:
        pytest.skip("SeaweedFS has no build for this machine: no command 'weed'")
    ports = dict(zip((*PORTS, *(f"{name}.grpc" for name in PORTS)), free_ports(10), strict=True))
    flags = [f"-{name}.port.grpc={ports[f'{name}.grpc']}" for name in PORTS]
    flags += [f"-{name}.port={ports[name]}" for name in PORTS]
    command = [
        *(weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", *flags),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=256"),
    ]
    seaweed_environ = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, env=seaweed_environ, cwd=folder, stdout=log, stderr=log)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        wait_until_it_writes(endpoint, process, folder / "weed.log")
        addresses = {name: f"127.0.0.1:{ports[name]}.{ports[f'{name}.grpc']}" for name in ("master", "filer")}
        yield Seaweed(endpoint, process.pid, tuple(f"-{name}={at}" for name, at in addresses.items()))
    finally:
        process.terminate()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for port in ports.values():
            for left_behind in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                left_behind.unlink(missing_ok=True)


def wait_until_it_writes(endpoint: str, process: subprocess.Popen, log: Path) -> None:
    """Return when an object can be written: the S3 port answers before there is room."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    options: Any = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "region": "us-east-1",
        "endpoint": endpoint,
    }
    store = S3Store(BUCKET, client_options={"allow_http": True}, retry_config={"max_retries": 0}, **options)
    end = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            requests.get(endpoint, timeout=5)
            store.put("ready", b"yes")
            return
        except (requests.RequestException, BaseError, FileNotFoundError) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}") from error
            time.sleep(0.1)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """One for all tests of a process."""
    with (
        tempfile.TemporaryDirectory(prefix="seaweed-", ignore_cleanup_errors=True) as folder,
        running_seaweed(Path(folder)) as seaweed,
    ):
        yield seaweed


@pytest.fixture
def storage(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> StorageSection:
    """Settings that reach it, with its keys in the environment."""
    from flowloom.storage.base import StorageSection

    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environ.items():
        monkeypatch.setenv(name, value)
    return StorageSection(endpoint=seaweed.endpoint)
