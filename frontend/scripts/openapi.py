"""Print the studio's OpenAPI document, from which src/lib/api/schema.ts is generated."""

import json
import sys
import tempfile
from pathlib import Path

from flowloom.server.app import create_app
from flowloom.server.settings import Settings

with tempfile.TemporaryDirectory() as home:
    document = create_app(Settings(Path(home))).openapi()
json.dump(document, sys.stdout, indent=1, sort_keys=True)
