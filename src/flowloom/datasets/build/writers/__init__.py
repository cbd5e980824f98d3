"""One file per format: `write(export)` writes all rows."""
