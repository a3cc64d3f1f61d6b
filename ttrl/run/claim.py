"""Claims a folder for one process, by a file in it."""

from __future__ import annotations

import errno
import fcntl
from typing import BinaryIO


def claim(file: BinaryIO) -> bool:
    """Claim an open file until it is closed; say whether no other process has it.

    The system ends the claim with the process, however that ends. On a file system that knows no
    locks nobody ever has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True
