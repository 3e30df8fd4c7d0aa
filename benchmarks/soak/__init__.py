"""Disturb `compressor run` in every way that a machine does, and see what is left of it."""
