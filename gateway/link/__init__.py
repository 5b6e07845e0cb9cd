"""The node link, sans-I/O: bytes in, values out. `docs/link.md` is its specification."""
