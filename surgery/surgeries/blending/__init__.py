"""Several models made one, weight by weight: which belong together, what was said, and how mergekit says it."""
