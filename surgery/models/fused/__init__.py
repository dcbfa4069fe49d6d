"""Fused projections: one formula (`layout.py`), one kind of row (`row.py`), the rows (`tables/`), and how rows are
found in a checkpoint (`detect.py`) or given by hand (`given.py`).
"""
