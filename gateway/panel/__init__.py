"""The local page: a process of its own, started by the gateway, so that no request can delay acquisition."""
