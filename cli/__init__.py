"""The command line of surgery. Installed as `surgery_cli`; the command is `surgery`."""

from .ending import main

__all__ = ["main"]
