"""The device: acquires, infers, stores and syncs; imports none of the other packages."""
