"""Files that torch saved, `.bin`, `.pt`, `.pth`, `.ckpt`: read as data, and never unpickled.

records.py    a pickle -> inert records: an unknown name becomes a record of that name, and nothing is ever called
archive.py    the zip around it -> where each storage lies; its own directory is asked, and checked
legacy.py     the same of files from before torch 1.6, which are no zip
strided.py    a tensor of a storage -> movement over stored bytes
parts.py      which of the tensors in a file are the model's: not an optimizer's, not a second copy's
reader.py     a file -> its tensors by name
"""
