"""The command ``compressor``. Each command imports what it needs when it runs."""

from compressor.cli.app import main

__all__ = ["main"]
