"""The project's own models: one package each, from data to signed bundle."""
