"""Scripts that train the demo's small networks, which are shipped in `assets/`."""
