"""GGUF, the files of llama.cpp: their header, which tensors lie where, and what both are called elsewhere.

header     bytes -> metadata and the table of tensors, bounded and checked
blocks     the types of tensors: numbers, and blocks of codes
model      a file, or the parts of a split one -> lazy tensors under the names of Hugging Face
names      what an architecture's tensors are called there, and how they are laid out
config     what config.json says of it
"""
