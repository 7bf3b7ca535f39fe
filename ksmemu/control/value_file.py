"""One file that shows a text of ksmd's: written in place, never renamed and never shortened.

So whoever keeps its descriptor always reads a whole and fresh text. Where a shorter one takes the place
of a longer one, newlines fill the file up. No client minds those: libvirt refuses a number that blanks
follow, netdata one that they precede.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class ValueFile:
    """A file and the text it shows, one line. Runs in: ksmd, one thread."""

    def __init__(self, path: Path, mode: int, text: str) -> None:
        """Create the file; FileExistsError if there is one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.text = text
        self._mode = mode
        self._length_bytes = 0
        self._is_taken = False
        self._fd = self._create()

    def close(self) -> None:
        """Close the file; it stays where it is."""
        os.close(self._fd)

    def show(self, text: str) -> None:
        """Show another text."""
        if text != self.text:
            self.text = text
            if not self._is_taken:
                os.pwrite(self._fd, self._filled(), 0)

    def content(self) -> bytes:
        """Return what the file holds, whoever wrote it."""
        return os.pread(self._fd, 4096, 0)

    @contextlib.contextmanager
    def taken(self, content: bytes) -> Iterator[None]:
        """Decide about what a client has written; the text is shown in its place afterwards.

        Unless a client has stored again meanwhile: the answer to that store will show it.
        """
        self._is_taken = True
        try:
            yield
        finally:
            self._is_taken = False
        if self.content() == content != (text := self._filled()):
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))  # cuts what a client wrote beyond it

    def is_lost(self) -> bool:
        """Whether the path no longer names this file."""
        try:
            return not os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd))
        except OSError:
            return True

    def recreate(self) -> None:
        """Put a new file with the same text at the path; OSError if there is no place for it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        new = self._create()
        os.close(self._fd)
        self._fd = new

    def _create(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        os.fchmod(fd, self._mode)  # whatever the umask
        os.pwrite(fd, self._filled(), 0)
        return fd

    def _filled(self) -> bytes:
        """Return the text at the length of the longest so far: nothing of an older one is left behind it."""
        line = f"{self.text}\n".encode()
        self._length_bytes = max(self._length_bytes, len(line))
        return line.ljust(self._length_bytes, b"\n")
