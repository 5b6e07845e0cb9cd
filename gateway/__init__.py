"""The device: acquires, infers, stores and syncs; imports none of the other packages."""

__version__ = "0.1.0"
