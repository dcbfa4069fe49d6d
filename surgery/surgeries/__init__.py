"""Surgeries: pure functions Checkpoint -> Checkpoint, one file each. None of them reads a tensor."""
