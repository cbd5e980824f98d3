"""What a cache holds, one file a kind of record."""
