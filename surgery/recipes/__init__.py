"""Chains of surgeries as data: what can be said to a step, recipes in files, and what makes them anew."""
