"""Files of a repository on the Hugging Face hub, page by page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urljoin

from flowloom.errors import SourceError
from flowloom.storage.base import shown
from flowloom.storage.downloads.request import Asker, ask
from flowloom.storage.ssrf import origin_of

MAX_PAGE = 2**23
"""Bytes of JSON, about 40,000 files."""
MAX_FILES = 100_000
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')
Shelf = Literal["models", "datasets"]


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    name: str
    size: int
    """In bytes."""
    sha256: str | None
    """Of large files."""


def files_of(asker: Asker, shelf: Shelf, repo: str, revision: str) -> list[HubFile]:
    """Every file of a repository at a branch, tag or commit.

    Raises:
        NotFound, Denied, SourceError: there is none, it is not shown, or the hub answered otherwise.
    """
    hub = asker.hub.rstrip("/")
    url = f"{hub}/api/{shelf}/{repo}/tree/{quote(revision, safe='')}?recursive=true"
    files: list[HubFile] = []
    while url:
        entries, url = _page(asker, url)
        files += [_file(entry) for entry in entries if entry.get("type") == "file"]
        if len(files) > MAX_FILES:
            raise SourceError(f"{repo}: has more than {MAX_FILES:,} files. Name a folder of it.")
    return files


def commit_of(asker: Asker, shelf: Shelf, repo: str, revision: str) -> str:
    """The commit that a branch or tag stands for now.

    Raises:
        NotFound, Denied, SourceError: as `files_of`.
    """
    url = f"{asker.hub.rstrip('/')}/api/{shelf}/{repo}/revision/{quote(revision, safe='')}"
    content, _ = _json(asker, url)
    commit = content.get("sha") if isinstance(content, dict) else None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise SourceError(f"{shown(url)}: it names no commit. Is HF_ENDPOINT right?")
    return commit


def _page(asker: Asker, url: str) -> tuple[list[dict[str, Any]], str]:
    """The entries, and where the next ones are."""
    content, following = _json(asker, url)
    if not isinstance(content, list):
        raise SourceError(f"{shown(url)}: it answered no list of files. Is HF_ENDPOINT right?")
    following = urljoin(url, following) if following else ""
    if following and origin_of(following) != origin_of(asker.hub):
        raise SourceError(f"{shown(url)}: its list continues at another host, {shown(following)}.")
    return [entry for entry in content if isinstance(entry, dict)], following


def _json(asker: Asker, url: str) -> tuple[Any, str]:
    from urllib3.exceptions import HTTPError

    try:
        response, _ = ask(asker, url, {})
        content = json.loads(response.read(MAX_PAGE))
    except (HTTPError, ValueError):
        raise SourceError(f"{shown(url)}: what it answered is no JSON, or broke off.") from None
    following = _NEXT.search(response.headers.get("Link", ""))
    return content, following[1] if following else ""


def _file(entry: dict[str, Any]) -> HubFile:
    large = entry.get("lfs")
    oid = large.get("oid") if isinstance(large, dict) else None
    size = entry.get("size")
    return HubFile(
        name=str(entry.get("path")),
        size=size if isinstance(size, int) else 0,
        sha256=oid if isinstance(oid, str) else None,
    )
