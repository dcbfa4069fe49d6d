"""Checkpoints of DeepSpeed's ZeRO, in which each rank's file holds a part of flat vectors of weights.

places.py    which folder holds one, and which ranks' files are there: all of them, of one kind
states.py    what such a file says: names and shapes, in the order in which the weights lie one after another
flat.py      the vectors, and a weight as a piece of them: movement over stored bytes
universal.py each weight in a file of its own, as DeepSpeed's converter writes them
agreeing.py  that the files are of one save: what all ranks say alike, and a 16-bit copy that its master rounds to
reader.py    a folder -> its tensors by name
"""
