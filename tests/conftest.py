"""Settings of every test; this file also makes pytest put the helpers beside it on the path."""

from hypothesis import settings

# No time limit per example, since machines differ; and the same examples on every run, so that
# a verdict belongs to a commit.
settings.register_profile("ttrl", deadline=None, derandomize=True)
settings.load_profile("ttrl")
