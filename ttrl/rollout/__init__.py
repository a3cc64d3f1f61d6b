"""Sampling of answers: engines, the pool that spreads questions over them, and workflows."""
