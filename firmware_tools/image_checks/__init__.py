"""The checks of a gateway's image, the same for the emulator and for a real board."""
