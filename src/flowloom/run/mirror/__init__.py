"""A copy of a run in an object store, from which another machine continues it."""
