"""Builds, flashes, emulates and updates the gateway's image and the nodes' firmware."""
