"""Measure a model on both sides, harm and refusal, and compare and report runs."""
