"""Model files, identified by their headers, and the files that a configuration needs."""
