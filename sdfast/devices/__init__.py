"""Devices: where programs run."""
