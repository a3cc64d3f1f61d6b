"""How what belongs to a step is named on disk."""

STEP_NAME = "step_([0-9]{5}|[1-9][0-9]{5,})"
"""As a regular expression; anything else in a run's folder is a user's."""
