"""One file per dataset format: `open_X(source, options)` returns its items, read lazily."""
