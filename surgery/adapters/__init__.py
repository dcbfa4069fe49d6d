"""Adapter kinds: each turns the tensors of an adapter into deltas on base tensors."""
