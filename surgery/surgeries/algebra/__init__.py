"""Adapters without their base, or from two of them: combined, of another rank, extracted."""
