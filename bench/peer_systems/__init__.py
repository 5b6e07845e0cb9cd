"""How each peer is set up for `bench.peers`: its configuration, written by us, with its own best durability."""
