"""A user's own Python object, named in the settings as FILE.py:NAME.

The file is the user's program and runs with all rights, like any script that is started by hand.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttrl.types import UserError


def is_plugin(name: str) -> bool:
    """Say whether a setting names an object in a file."""
    return ".py:" in name


def load_plugin(name: str, setting: str) -> Any:
    """Load the object that FILE.py:NAME names.

    Args:
        name: FILE.py:NAME; a relative path starts at the working directory.
        setting: for the error message.

    Raises:
        UserError: if there is no such file or name in it, or the file fails to run.
    """
    path, _, attribute = name.rpartition(":")
    if not attribute:
        raise UserError(f"{setting} = {name!r} names nothing in {path}: expected {path}:NAME")
    if not Path(path).is_file():
        raise UserError(f"{setting} = {name!r}: no file at {path}")
    spec = importlib.util.spec_from_file_location(f"ttrl_user_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # for a path that ends with .py
    module = importlib.util.module_from_spec(spec)
    with errors_as_user_error(name, setting):
        spec.loader.exec_module(module)
    if not callable(getattr(module, attribute, None)):
        raise UserError(f"{setting} = {name!r}: {path} defines no {attribute} that can be called")
    return getattr(module, attribute)


@contextmanager
def errors_as_user_error(name: str, setting: str) -> Iterator[None]:
    """Turn what a user's object raises into one line that says where; not what stops the program.

    Raises:
        UserError: for any `Exception`, and for SystemExit.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said, file, line = str(error), last.filename, last.lineno
        if isinstance(error, SyntaxError) and error.filename:  # raised by Python, not by a line
            said, file, line = error.msg, error.filename, error.lineno
        raise UserError(
            f"{setting} = {name!r} failed with {type(error).__name__}: {said} ({file}:{line})"
        ) from error
