"""Samples, their sources, the join with their neighbours, collation and the data module."""
