"""What makes parts of the documentation out of the code: tables, the reference, pictures."""
