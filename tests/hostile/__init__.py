"""Files that nobody should trust, one row each: how to write it, the commands that meet it, and what these must say.

rows        what a row is, and how most are made: a good checkpoint or adapter with one file changed
judging     a command in a child of this process, and all that is wrong with how it ended
table       all rows; the other modules hold them, a kind each

`python -m hostile` (in `tests`) runs every row through every command, and prints what each said and cost.
"""
