"""Measurement of a run: against an answer key, and by signs that need none."""
