"""Targets: detecting what a machine is."""
