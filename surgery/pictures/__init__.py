"""What a checkpoint, and what changed in it, looks like: one HTML file, and figures."""
