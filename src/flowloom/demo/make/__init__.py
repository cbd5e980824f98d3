"""How the demo's small networks are made; what they make is shipped in `assets/`."""
