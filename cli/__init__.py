"""The command line of surgery. Installed as `surgery_cli`; the command is `surgery`."""

from .app import main

__all__ = ["main"]
