"""Downloads from public addresses: resumable and verified."""
