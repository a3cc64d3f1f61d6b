"""The one place through which a run changes what is on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    import torch


class Disk:
    """Every change that saving makes on disk: tests end the process, or fill the disk, in each."""

    def make_folder(self, path: Path) -> None:
        """Make a folder, and those that it is in."""
        path.mkdir(parents=True)

    def write(self, path: Path, content: bytes | dict[str, torch.Tensor]) -> None:
        """Write a new file: these bytes, or these tensors as safetensors."""
        if isinstance(content, bytes):
            path.write_bytes(content)
            return
        from safetensors.torch import save_file

        try:
            save_file(content, path)
        except SafetensorError as error:  # what a full disk becomes
            raise OSError(f"cannot write {path}: {error}") from error

    def append(self, path: Path, content: bytes) -> None:
        """Add to a file, on disk when this returns: all of it, or after an error nothing."""
        with path.open("ab", buffering=0) as file:  # a buffer would be written at its closing, too
            begin, left = file.tell(), memoryview(content)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException as error:  # a full disk, Ctrl-C
                os.truncate(path, begin)
                if isinstance(error, OSError):  # which says of what, not where
                    error.filename = os.fspath(path)
                raise

    def sync(self, path: Path) -> None:
        """Have a file's content, or a folder's list of files, survive a power cut."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder at once: there is never both or neither."""
        old.rename(new)

    def remove(self, path: Path) -> None:
        """Remove a folder and all in it; of a link, not what it points to."""
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


disk = Disk()
