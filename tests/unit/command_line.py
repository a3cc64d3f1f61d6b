"""``ttrl ...`` in this process."""

from __future__ import annotations

import sys

import pytest

from ttrl import cli


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``ttrl ...``."""
    monkeypatch.setattr(sys, "argv", ["ttrl", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
        raise SystemExit(0)
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err
