"""Benchmarks, judges, rates with intervals, reports."""
