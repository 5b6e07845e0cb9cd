"""Off, idle or running, from a window of a machine's current and power."""
