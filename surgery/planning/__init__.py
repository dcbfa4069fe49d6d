"""A checkpoint -> a plan: what will be written where, proved before the first byte."""
