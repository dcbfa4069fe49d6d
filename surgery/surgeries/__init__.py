"""Surgeries: pure functions Checkpoint -> Checkpoint. A file for each, or for two that undo each other; `merging` and
`injecting` are rooms. What is written they only describe; a few tensors are read, to be compared.
"""
