"""Settings of every test; this file also makes pytest put the helpers beside it on the path."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("hypothesis") is not None:  # tests on a GPU need none of it: bench/gpu_check.sh
    from hypothesis import settings

    # No time limit per example, since machines differ; and the same examples on every run, so that
    # a verdict belongs to a commit.
    settings.register_profile("ttrl", deadline=None, derandomize=True)
    settings.load_profile("ttrl")
