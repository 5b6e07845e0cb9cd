"""From readings to windows, from inferences to events."""
