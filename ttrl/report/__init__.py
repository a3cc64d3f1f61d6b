"""Output of a run for its user: progress and tables on the screen."""
