"""Which part of a picture is a person: for portraits, or after a detector has found people."""
