"""Measuring a VLM: questions, greedy answers, judges, rates with intervals, cosines, reports and comparisons."""
