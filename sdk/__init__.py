"""The host: trains, signs, deploys, ingests and tests; talks to a gateway."""
