"""Lists the folders of a web server from its own index pages."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from flowloom.datasets.build.items import JUNK
from flowloom.datasets.build.sizes import MAX_HEAD_BYTES
from flowloom.datasets.build.stores import ObjectStore
from flowloom.errors import DataError
from flowloom.storage.base import ObjectInfo

MAX_PAGES = 100_000


@dataclass(frozen=True, slots=True)
class Link:
    """A file that a page names; its size and time are not known yet."""

    name: str
    size: int = MAX_HEAD_BYTES
    etag: str | None = "by address"
    modified: None = None


class IndexPages:
    """The files that `store` serves below `url`, by index pages of Apache, nginx or Python's server."""

    def __init__(self, url: str, store: ObjectStore):
        self.url = self.root = f"{url.rstrip('/')}/"
        self._store = store

    def read(self, name: str) -> bytes:
        """All bytes of `name`."""
        return self._store.read(urllib.parse.quote(name))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of `name`."""
        return self._store.read_range(urllib.parse.quote(name), start, length)

    def stat(self, name: str) -> ObjectInfo:
        """Size and etag of `name`."""
        return self._store.stat(urllib.parse.quote(name))

    def write(self, name: str, content: bytes | Path) -> None:  # noqa: ARG002
        """Always fails: web servers are read only.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{self.url}{name}: web servers cannot be written to. Upload to s3://, gs:// or az://."
        )

    def list(self, prefix: str) -> Iterator[Link]:
        """Every file below `url` that the pages link to, folder after folder.

        Raises:
            DataError: the server has no index pages.
        """
        pending, seen = [prefix], {prefix}
        while pending:
            folder = pending.pop()
            if len(seen) > MAX_PAGES:
                raise DataError(f"{self.url}: more than {MAX_PAGES:,} folders; are its links circular?")
            for name in self._links(folder):
                if name in seen:
                    continue
                seen.add(name)
                if not name.endswith("/"):
                    yield Link(name)
                elif name.rstrip("/").rpartition("/")[2].lower() not in JUNK:
                    pending.append(name)

    def _links(self, folder: str) -> Iterator[str]:
        """Names of the files and folders that the page of `folder` links to; folders end in a slash."""
        page = self._store.read(urllib.parse.quote(folder))
        parser = _Hrefs()
        parser.feed(page.decode("utf-8", "replace"))
        if not parser.is_page:
            raise DataError(f"{self.url}{folder}: the server returned no index page.")
        base = self.url + urllib.parse.quote(folder)
        for href in parser.hrefs:
            address, _, _ = urllib.parse.urljoin(base, href).partition("#")
            # Pages link to themselves with other sort orders: `?C=N;O=D`.
            if "?" not in address and address.startswith(base) and address != base:
                yield urllib.parse.unquote(address.removeprefix(self.url))


class _Hrefs(HTMLParser):
    """Collects the addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.is_page = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_page = self.is_page or tag in ("html", "a", "ul", "pre", "body")
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]
