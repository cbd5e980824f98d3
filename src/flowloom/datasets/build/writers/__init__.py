"""One file a form: `write(export)` writes all rows."""
