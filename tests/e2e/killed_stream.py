"""A run on a stream that is killed: ``killed_stream.py FOLDER FILE N SETTING...``.

The signal comes when the N-th line is written to ``stream/FILE.jsonl``, with half of it on disk. A
folder that is there is gone on with.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from streamed import train_on

from ttrl.run.disk import Disk
from ttrl.stream import appended


class KilledDisk(Disk):
    """Kills the process that writes."""

    written = 0

    def append(self, path: Path, content: bytes) -> None:
        """Write, or write half and die."""
        if path.stem == sys.argv[2] and content:
            self.written += 1
            if self.written == int(sys.argv[3]):
                for thread in threading.enumerate():
                    if thread.name == "checkpoint":  # so that it is known which there is
                        thread.join()
                super().append(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        super().append(path, content)


if __name__ == "__main__":
    appended.disk = KilledDisk()
    folder = Path(sys.argv[1])
    train_on(folder, sys.argv[4:], resume=folder.exists())
