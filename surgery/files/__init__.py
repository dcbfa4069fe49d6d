"""What lies in a folder: file formats, parsed at the edge into values that cannot be invalid, and written back byte
for byte.
"""
