"""Disk images: block maps, partition tables, targets, writing with proof, and changing the data partition."""
