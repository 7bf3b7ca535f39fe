"""A worker of the soak (tests/soak.py): threads do everything that a program can do to pages of their own.

Each thread has plots of a few pages, between those of the others, so that what is frozen or merged together
belongs to several. What a page must hold stands in a model in ordinary memory, and is compared byte by byte.
"""

import contextlib
import ctypes
import errno
import faulthandler
import os
import random
import select
import signal
import threading
import traceback
from mmap import PROT_READ, PROT_WRITE

import numpy as np

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support.procmaps import PAGE
from tests.support.race import LostWriteError, difference, longest_prefix

NR_PAGES = 997
NR_THREADS = 3
_PLOT_PAGES = 7
_CONTENTS = 11
_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1

COUNTS = ("turns", "checked_bytes", "writes", "discards", "advices", "forks", "refused", "failures")
"""What a thread counts, in memory shared with the driver: what a killed worker has done counts too."""


class Garden:
    """The space of one worker, its model, and the threads that work in it."""

    def __init__(self, directory, seed, counts):
        self.directory = directory
        self.failure = None
        self.wants_rest = False
        self.barrier = threading.Barrier(NR_THREADS + 1)
        self.contents = os.memfd_create("contents")
        os.write(self.contents, b"".join(bytes([value]) * PAGE for value in range(_CONTENTS)))
        self.open()
        self.hands = [Hand(self, number, f"{seed}/{number}", counts[number]) for number in range(NR_THREADS)]

    def open(self):
        """Begin a space: mapped, advised, and all zeros."""
        self.space = ksmemu.AddressSpace(NR_PAGES * PAGE, instance=self.directory)
        self.start = self.space.mmap(NR_PAGES * PAGE)
        self.model = np.zeros((NR_PAGES, PAGE), np.uint8)
        self.is_mapped = np.ones(NR_PAGES, bool)
        with contextlib.suppress(ksmemu.NotRunningError):  # ksmd was killed a moment ago
            self.space.madvise_all(MADV_MERGEABLE)

    def close(self):
        """End it, when all has been checked once more."""
        for hand in self.hands:
            for first, nr in hand.plots:
                hand.check(first, nr)
        self.space.close()

    def at(self, page):
        return self.start + page * PAGE

    def fail(self, text):
        self.failure = self.failure or text
        self.barrier.abort()

    # ---- what the driver asks for -------------------------------------------------------------------

    def rest(self):
        """Let all threads end their turns; return where all that is mapped, and now mergeable, lies."""
        self.wants_rest = True
        self.barrier.wait(_SECONDS)
        self.space.madvise_all(MADV_MERGEABLE)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], self.is_mapped, [0]))))
        return [(self.at(int(first)), self.at(int(last))) for first, last in edges.reshape(-1, 2)]

    def own_bytes(self):
        return self.space.blocks_bytes()

    def go(self):
        self.wants_rest = False
        self.barrier.wait(_SECONDS)

    def leave(self):
        self.wants_rest = True
        self.barrier.wait(_SECONDS)
        self.close()


class Hand(threading.Thread):
    """One thread; a turn is one thing done to some pages of one plot."""

    def __init__(self, garden, number, seed, counts):
        super().__init__(daemon=True)
        self.garden, self.counts = garden, counts
        self.random = random.Random(seed)
        firsts = range(number * _PLOT_PAGES, NR_PAGES, NR_THREADS * _PLOT_PAGES)
        self.plots = [(first, min(_PLOT_PAGES, NR_PAGES - first)) for first in firsts]

    def run(self):
        try:
            while True:
                if self.garden.wants_rest:
                    self.garden.barrier.wait()
                    self.garden.barrier.wait()
                self.turn()
                self.count("turns")
        except threading.BrokenBarrierError:
            return
        except BaseException:
            self.garden.fail(traceback.format_exc())
            self.count("failures")

    def count(self, name, by=1):
        self.counts[COUNTS.index(name)] += by

    def turn(self):
        first, nr = self.random.choice(self.plots)
        skipped = self.random.randrange(nr)
        first, nr = first + skipped, self.random.randint(1, nr - skipped)
        if self.check(first, nr):
            act = self.random.choices(list(_ACTIONS), list(_ACTIONS.values()))[0]
            act(self, first, nr)
        elif self.random.random() < 0.5:
            self.map(first, nr)

    # ---- reading ------------------------------------------------------------------------------------

    def check(self, first, nr):
        """Compare pages with the model; return whether all of them are mapped."""
        garden, space = self.garden, self.garden.space
        if not garden.is_mapped[first : first + nr].all():
            self.check_that_it_faults(first, nr)
            return False
        found = np.frombuffer(space.read(garden.at(first), nr * PAGE), np.uint8).reshape(nr, PAGE)
        expected = garden.model[first : first + nr]
        if not (found == expected).all():
            page = int(np.flatnonzero((found != expected).any(axis=1))[0])
            lost = difference(expected[page].tobytes(), found[page].tobytes())
            raise LostWriteError(f"page {first + page}: {lost}")
        self.count("checked_bytes", nr * PAGE)
        return True

    def check_that_it_faults(self, first, nr):
        try:
            self.garden.space.read(self.garden.at(first), nr * PAGE)
        except OSError as error:
            if error.errno == errno.EFAULT:
                return
            raise
        raise LostWriteError(f"{nr} pages from {first} can be read, and are not mapped")

    # ---- writing ------------------------------------------------------------------------------------

    def write_slices(self, first, nr):
        """With the GIL held, also while the thread sleeps on a frozen page."""
        value = self.random.randrange(_CONTENTS)
        data = bytes([value]) * (nr * PAGE)
        self.garden.space.write(self.garden.at(first), data)
        self.garden.model[first : first + nr] = value
        self.count("writes", nr)

    def write_array(self, first, nr):
        """Without the GIL, and from some byte of each page on."""
        value, place = self.random.randrange(_CONTENTS), self.random.choice((0, 1777, PAGE - 1))
        array = self.garden.space.ndarray((nr, PAGE), np.uint8, self.garden.at(first))
        array[:, place:] = value
        self.garden.model[first : first + nr, place:] = value
        self.count("writes", nr)

    def write_unique(self, first, nr):
        data = self.random.randbytes(nr * PAGE)
        self.garden.space.write(self.garden.at(first), data)
        self.garden.model[first : first + nr] = np.frombuffer(data, np.uint8).reshape(nr, PAGE)
        self.count("writes", nr)

    def write_again(self, first, nr):
        """What is there already: renewed, where it was merged."""
        self.garden.space.write(self.garden.at(first), self.garden.model[first : first + nr].tobytes())
        self.count("writes", nr)

    def write_by_system_call(self, first, nr):
        """The kernel writes; where userfaultfd is for user mode only it may refuse half-way."""
        value = self.random.randrange(_CONTENTS)
        content = bytes([value]) * PAGE
        for page in range(first, first + nr):
            with self.garden.space.view(self.garden.at(page), PAGE) as target:
                try:
                    done = os.preadv(self.garden.contents, [target], value * PAGE)
                except OSError as error:
                    if error.errno != errno.EFAULT:
                        raise
                    self.count("refused")
                    done = longest_prefix(bytes(target), content)
            self.garden.model[page, :done] = value
        self.count("writes", nr)

    # ---- mapping ------------------------------------------------------------------------------------

    def unmap(self, first, nr):
        self.garden.space.munmap(self.garden.at(first), nr * PAGE)
        self.garden.is_mapped[first : first + nr] = False

    def map(self, first, nr):
        """Map what is not, as zeros; mostly mergeable at once."""
        for page in range(first, first + nr):
            if not self.garden.is_mapped[page]:
                self.garden.space.mmap(PAGE, self.garden.at(page))
                self.garden.is_mapped[page] = True
                self.garden.model[page] = 0
        if self.random.random() < 0.8:
            self.advise(first, nr)

    def discard(self, first, nr):
        self.unmap(first, nr)
        self.map(first, nr)
        self.count("discards", nr)

    def protect(self, first, nr):
        space, at = self.garden.space, self.garden.at(first)
        space.mprotect(at, nr * PAGE, PROT_READ)
        self.check(first, nr)
        try:
            space.write(at, b"x")
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
        else:
            raise LostWriteError(f"page {first} can be written, and is protected")
        space.mprotect(at, nr * PAGE, PROT_READ | PROT_WRITE)

    # ---- advice -------------------------------------------------------------------------------------

    def advise(self, first, nr, advice=MADV_MERGEABLE):
        with contextlib.suppress(ksmemu.NotRunningError):  # ksmd was killed a moment ago: nothing has changed
            self.garden.space.madvise(self.garden.at(first), nr * PAGE, advice)
            self.count("advices")

    def unadvise(self, first, nr):
        self.advise(first, nr, MADV_UNMERGEABLE)

    def bind(self, first, nr):
        with contextlib.suppress(ksmemu.NotRunningError):
            self.garden.space.mbind(self.garden.at(first), nr * PAGE, self.random.randrange(2))

    # ---- fork ---------------------------------------------------------------------------------------

    def fork(self, first, nr):
        pid = os.fork()
        if pid == 0:
            os._exit(self._end_in_child(first, nr))
        end = os.pidfd_open(pid)
        is_over = select.select([end], [], [], _SECONDS)[0]
        if not is_over:
            signal.pidfd_send_signal(end, signal.SIGKILL)
        os.close(end)
        _, status = os.waitpid(pid, 0)
        if status:
            raise LostWriteError(f"a forked child ended with status {status}")
        self.count("forks")

    def _end_in_child(self, first, nr):
        try:
            return 0 if is_right_in_child(self, first, nr) else 1
        except BaseException:
            traceback.print_exc()
            return 2


def is_right_in_child(hand, first, nr):
    """Whether a forked child has these pages to itself, as they were; its parent finds none of its writes."""
    if not hand.check(first, nr):
        return False
    hand.write_slices(first, nr)
    return hand.check(first, nr)


_ACTIONS = {
    Hand.write_slices: 15,
    Hand.write_array: 15,
    Hand.write_by_system_call: 8,
    Hand.write_again: 5,
    Hand.write_unique: 2,
    Hand.discard: 4,
    Hand.unmap: 1,
    Hand.map: 2,
    Hand.unadvise: 2,
    Hand.advise: 4,
    Hand.protect: 1,
    Hand.bind: 1,
    Hand.fork: 0.3,
}
"""What a thread does to its pages, and how often."""


def serve(control, directory, seed, counts):
    """Work until the driver says "leave", or is gone; each request is answered with (failure, result)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1)  # says where all threads are, also one that sleeps with the GIL
    garden = Garden(directory, seed, counts)
    for hand in garden.hands:
        hand.start()
    request = None
    while request != "leave":
        request = control.recv()
        try:
            answer = getattr(garden, request)()
        except BaseException:
            garden.fail(traceback.format_exc())
            answer = None
        control.send((garden.failure, answer))
