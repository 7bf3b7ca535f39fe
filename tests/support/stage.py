"""One space whose agent meets a fault, what its bytes must be, and threads that use it all the while.

Whatever may sleep on a frozen page is a thread that holds no GIL, with a deadline: ctypes lets go of it.
"""

import contextlib
import ctypes
import os
import threading

from tests.support import procmaps
from tests.support.joined import joined
from tests.support.pages import content
from tests.support.procmaps import PAGE

_SECONDS = 5.0
_AT = 1777
_open = []


class SleepsForEverError(AssertionError):
    """A thread that reads or writes does not come back."""


class Busy(threading.Thread):
    """Raises a number in each of some pages, all the time."""

    def __init__(self, stage, pages):
        super().__init__(daemon=True)
        self.stage, self.pages, self.count, self.is_over = stage, pages, 0, False
        self._has_begun = threading.Event()

    def run(self):
        while self.pages and not self.is_over:
            self.count += 1
            for page in self.pages:
                ctypes.memmove(self.stage.space.address(page) + _AT, self.count.to_bytes(8, "little"), 8)
            self._has_begun.set()
        self._has_begun.set()

    def begin(self):
        """Return when it has written to every page."""
        self.start()
        self._has_begun.wait()

    def end(self):
        """Let it end; the model learns what it wrote."""
        self.is_over = True
        join(self)
        for page in self.pages:
            self.stage.model[page][_AT : _AT + 8] = self.count.to_bytes(8, "little")


def join(thread, seconds=_SECONDS):
    thread.join(seconds)
    if thread.is_alive():
        raise SleepsForEverError


class Stage:
    """A space of an agent; `model` is what each page must hold."""

    def __init__(self, space):
        self.space = space
        self.model = {page: bytearray(PAGE) for page in range(space.nr_pages)}
        self.is_parted = False
        """Whether the agent has broken with ksmd."""

    def put(self, page, data):
        """Write to a page, and to the model."""
        self.model[page][: len(data)] = data
        self.space.write(page, data)

    def twin(self, *pairs):
        """Give each page a content, and its frame the same, if there is one."""
        for page, frame in pairs:
            self.put(page, content(page))
            if frame is not None:
                self.space.fill_frame(frame, content(page))

    def shows(self):
        """Return what each page is: its permissions, and the frame that it shows or None.

        Of a space that is removed: what is there still. Somebody else's memory may be, too.
        """
        found = {}
        pool = os.fstat(self.space.pool).st_ino
        end = self.space.address(self.space.nr_pages)
        for part in procmaps.mappings("self", self.space.start, end):
            if self.space.is_removed and "memfd:" not in part.path:
                continue
            first = (part.start - self.space.start) // PAGE
            for index in range(part.pages):
                frame = part.offset // PAGE + index if part.inode == pool else None
                found[first + index] = part.perms, frame
        return found

    def check(self):
        """Assert that every page holds what it must, also one that may not be read."""
        wrong = []
        self._in_time(self._read_all, wrong)
        assert not wrong, f"other bytes in pages {wrong}"

    def _read_all(self, wrong):
        mem = os.open("/proc/self/mem", os.O_RDONLY)
        wrong += [p for p, want in self.model.items() if os.pread(mem, PAGE, self.space.address(p)) != want]
        os.close(mem)

    def write_all(self, seconds=_SECONDS):
        """Write to every page that may be written."""
        shows = self.shows()
        self._in_time(self._write_all, [page for page in self.model if "w" in shows[page][0]], seconds)

    def _write_all(self, pages):
        for page in pages:
            self.model[page][2003] ^= 0xFF
            at = self.space.address(page) + 2003
            ctypes.memmove(at, bytes(self.model[page][2003:2004]), 1)

    @staticmethod
    def _in_time(target, pages, seconds=_SECONDS):
        thread = threading.Thread(target=target, args=[pages], daemon=True)
        thread.start()
        join(thread, seconds)

    def merge(self, *runs):
        return self._order(self.space.merge, *runs)

    def renew(self, *runs):
        return self._order(self.space.renew, *runs)

    def rehome(self, *runs):
        return self._order(self.space.rehome, *runs)

    def _order(self, send, *runs):
        try:
            return send(*runs)
        except (EOFError, ConnectionError):
            self.is_parted = True
            return {}


@contextlib.contextmanager
def stage(**how):
    """Yield a stage over a space that is joined as tests.support.joined says.

    When what is played there fails, all stays open: a thread may be at work on the memory, or asleep.
    """
    opened = contextlib.ExitStack()
    _open.append(opened)
    yield Stage(opened.enter_context(joined(**how)))
    _open.pop().close()
