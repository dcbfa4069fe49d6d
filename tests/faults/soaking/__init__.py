"""A soak: random chains of commands on random checkpoints, on a small disk, within an address space, with faults.

`drawing` makes checkpoints and adapters, `acts` the commands, each with a law that knows the right answer from torch
and the safetensors library alone; `rounds` runs them, undisturbed and disturbed; `lasting` does the same again in one
long-lived process, and counts what that holds on to.
"""
