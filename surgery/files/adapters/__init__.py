"""Formats of adapters besides PEFT's folders: one file each, recognised by what its tensors are called."""
