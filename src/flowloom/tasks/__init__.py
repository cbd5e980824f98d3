"""Tasks other than training: caching, downloads, tagging ...; each is a run in the same queue."""

from flowloom.tasks.registry import ALL as ALL
