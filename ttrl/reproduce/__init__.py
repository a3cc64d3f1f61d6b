"""A row of the paper from one command: what is run for it, in which order, and its numbers."""
