"""An object store for browser tests: `python store.py IMAGE`, from the repository's root.

Store the image and its caption, print the address and keys as one line of JSON, and end when stdin closes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from obstore.store import S3Store

from tests.fakes.seaweed import running_seaweed


def main(image: Path) -> None:
    """Run the store until stdin closes."""
    with (
        tempfile.TemporaryDirectory(prefix="seaweed-", ignore_cleanup_errors=True) as folder,
        running_seaweed(Path(folder)) as seaweed,
    ):
        keys = {"access_key_id": seaweed.key, "secret_access_key": seaweed.secret}
        address = {"region": "us-east-1", "endpoint": seaweed.endpoint}
        store = S3Store(seaweed.bucket, client_options={"allow_http": True}, **keys, **address)
        store.put("fox/0.png", image.read_bytes())
        store.put("fox/0.txt", b"a fox in the bucket")
        sys.stdout.write(json.dumps(keys | address | {"url": f"s3://{seaweed.bucket}/fox"}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
