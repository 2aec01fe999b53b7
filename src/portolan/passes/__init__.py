"""Passes, one file each: `portolan/passes/NAME.py` defines a Pass called `NAME`."""
