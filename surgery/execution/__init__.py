"""A plan -> files: staged beside the destination, made by a crew of workers, published by one rename."""
