"""The questions that a checkpoint answers: what is in it, whether it is whole, what changed, whether a merge is
right.
"""
