"""One file a form of data set: `open_X(source, options)` gives its items, lazily."""
