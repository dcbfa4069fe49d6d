"""Injecting zero-initialised adapters."""
