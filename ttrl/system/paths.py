"""Names on disk of what belongs to a step."""

STEP_NAME = "step_([0-9]{5}|[1-9][0-9]{5,})"
"""A step's name as a regular expression; anything else in a run's folder is a user's."""
