"""Merging adapters into a base."""
