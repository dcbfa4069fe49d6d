"""An adapter in the form of another tool: a row of `FORMS` and a file each."""
