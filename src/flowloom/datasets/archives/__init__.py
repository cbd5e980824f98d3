"""Untrusted images, captions and archives: safe names and unpacking."""
