"""Quantised checkpoints: one file for each family of schemes, which turns stored codes into lazy decoded tensors."""
