"""Programs of bench/ and scripts/, imported by the tests of what they make."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def program(file: str) -> Iterator[ModuleType]:
    """Import a program by its path from the root, with its own folder in front, as when it runs.

    Nothing from that folder stays imported behind the context: its files have names that others
    have, too.
    """
    path = ROOT / file
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        patch.delitem(sys.modules, path.stem, raising=False)
        yield importlib.import_module(path.stem)
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").parent == path.parent:
                del sys.modules[name]
