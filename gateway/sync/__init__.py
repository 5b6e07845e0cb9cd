"""Delivery: one MQTT connection that carries the backlog plane and the live plane."""
