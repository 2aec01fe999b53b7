"""Backends, one file each: `portolan/backends/NAME.py` defines an object `NAME`."""
