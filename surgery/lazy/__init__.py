"""What a tensor is and where it comes from, never its values."""
