"""Model files: what they are, told from their headers alone, and what a configuration lacks of them."""
