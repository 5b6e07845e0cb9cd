"""The parts of `./inv image.build`; `firmware_tools.image` puts them in order."""
