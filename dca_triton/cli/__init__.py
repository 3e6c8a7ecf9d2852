"""The command line, `dca-triton`."""

from .main import main

__all__ = ["main"]
