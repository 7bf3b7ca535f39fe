"""Writers that check each value they read against a model outside the shared memory (I1).

The writers run in workers. All writers of one race share the pages, each page has one writer, neighbours have
different ones: every run of merged pages has several writers in it. Values come from a small set, so that
pages are equal again and again.
"""

import errno
import itertools
import os
import random
import socket
import tempfile
import threading
import time

import numpy as np

import ksmemu
from ksmemu import Ksmd, _core
from tests.support.joined import ZERO, joined
from tests.support.processes import Worker
from tests.support.procmaps import PAGE
from tests.support.waiting import run_for

FULL_SPEED = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 0}
CONTENTS = [bytes([value]) * PAGE for value in range(7)]
_PLACES = (0, 1777, PAGE - 1)
_NR_PAGES = 997
_JOIN_SECONDS = 5.0
_GRACE_SECONDS = 12.0


class LostWriteError(AssertionError):
    """A page does not hold what was written to it last."""


class Writer(threading.Thread):
    """Writes pages of its own and checks, before each write, what they hold."""

    def __init__(self, race, pages, seed):
        super().__init__(name=type(self).__name__)
        self.race, self.pages = race, pages
        self.random = random.Random(seed)
        self.view = race.view()
        self.model = dict.fromkeys(pages, CONTENTS[0])
        self.writes = self.refused = self.short = 0

    def run(self):
        try:
            while not self.race.is_over.is_set():
                self.turn()
            for page in self.pages:
                self.check(page)
        except BaseException as error:
            self.race.fail(f"{self.name}: {error!r}")
        finally:
            self.close()

    def close(self):
        self.view.release()

    def check(self, page):
        found = bytes(self.view[page * PAGE : (page + 1) * PAGE])
        if found != self.model[page]:
            raise LostWriteError(f"page {page}: {difference(self.model[page], found)}")

    def turn(self):
        page = self.random.choice(self.pages)
        self.check(page)
        self.write(page, self.random.choice(CONTENTS))
        self.writes += 1


def difference(expected, found):
    """Say how two pages differ."""
    wrong = [at for at in range(PAGE) if expected[at] != found[at]]
    at = wrong[0]
    return f"{len(wrong)} bytes are lost, at {at} is {found[at]} and not {expected[at]}"


class PythonWriter(Writer):
    """Slice assignment: holds the GIL all the time, also while it sleeps on a frozen page."""

    def write(self, page, content):
        if self.random.random() < 0.3:
            self.write_byte(page, self.random.choice(_PLACES), content[0])
        else:
            self.view[page * PAGE : (page + 1) * PAGE] = content
            self.model[page] = content

    def write_byte(self, page, place, value):
        self.view[page * PAGE + place] = value
        old = self.model[page]
        self.model[page] = old[:place] + bytes([value]) + old[place + 1 :]


class NumpyWriter(Writer):
    """Array assignment: several pages in one operation, without the GIL."""

    def __init__(self, race, pages, seed):
        super().__init__(race, pages, seed)
        self.array = np.frombuffer(self.view, np.uint8).reshape(race.nr_pages, PAGE)
        self.mirror = np.zeros((race.nr_pages, PAGE), np.uint8)

    def close(self):
        del self.array
        super().close()

    def check(self, page):
        self.check_all([page])

    def check_all(self, pages):
        found, expected = self.array[pages], self.mirror[pages]
        if not (found == expected).all():
            which = int(np.flatnonzero((found != expected).any(axis=1))[0])
            lost = difference(expected[which].tobytes(), found[which].tobytes())
            raise LostWriteError(f"page {pages[which]}: {lost}")

    def turn(self):
        pages = self.random.sample(self.pages, 5)
        self.check_all(pages)
        value = self.random.randrange(len(CONTENTS))
        place = slice(self.random.choice((0, *_PLACES)), None)
        self.array[pages, place] = value
        self.mirror[pages, place] = value
        self.writes += len(pages)


class SystemCallWriter(Writer):
    """The kernel writes: from a file, a pipe or a socket into the page.

    Where userfaultfd is for user mode only, a call may be refused by EFAULT. Then, and after a short count,
    the page holds a beginning of what was to be written and for the rest what it held before.
    """

    def __init__(self, race, pages, seed):
        super().__init__(race, pages, seed)
        self.file = os.memfd_create("contents")
        os.write(self.file, b"".join(CONTENTS))
        self.pipe = os.pipe()
        self.sockets = socket.socketpair()
        self.calls = itertools.cycle((self.from_file, self.from_pipe, self.from_socket))

    def close(self):
        for fd in (self.file, *self.pipe):
            os.close(fd)
        for end in self.sockets:
            end.close()
        super().close()

    def from_file(self, page, content):
        return os.preadv(self.file, [page], content[0] * PAGE)

    def from_pipe(self, page, content):
        os.write(self.pipe[1], content)
        try:
            done = os.readv(self.pipe[0], [page])
        except OSError:
            assert os.read(self.pipe[0], PAGE) == content
            raise
        assert done == PAGE or os.read(self.pipe[0], PAGE) == content[done:]
        return done

    def from_socket(self, page, content):
        self.sockets[1].sendall(content)
        try:
            done = self.sockets[0].recv_into(page)
        except OSError:
            assert self.sockets[0].recv(PAGE) == content
            raise
        assert done == PAGE or self.sockets[0].recv(PAGE) == content[done:]
        return done

    def write(self, page, content):
        call = next(self.calls)
        with self.view[page * PAGE : (page + 1) * PAGE] as target:
            try:
                done = call(target, content)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                self.refused += 1
                done = longest_prefix(bytes(target), content)
        self.short += 0 < done < PAGE
        self.model[page] = content[:done] + self.model[page][done:]


def longest_prefix(found, content):
    """Return how many bytes at the beginning of a page are already those of its new content."""
    return next((at for at in range(PAGE) if found[at] != content[at]), PAGE)


class Race:
    """The writers of one worker over one space: pages of zeros, of which view() is a new memoryview."""

    KINDS = (PythonWriter, NumpyWriter, SystemCallWriter, PythonWriter, SystemCallWriter)

    def __init__(self, view, nr_pages, seed, kinds=KINDS):
        self.view, self.nr_pages = view, nr_pages
        self.is_over = threading.Event()
        self.failures = []
        self.writers = [
            kind(self, range(nr, nr_pages, len(kinds)), f"{seed}/{nr}") for nr, kind in enumerate(kinds)
        ]

    def fail(self, text):
        self.failures.append(text)
        self.is_over.set()

    def run(self, seconds, meanwhile=lambda: None):
        for writer in self.writers:
            writer.start()
        for _ in run_for(seconds):
            meanwhile()
            if self.is_over.is_set():
                break
        self.is_over.set()
        deadline = time.monotonic() + _JOIN_SECONDS
        for writer in self.writers:
            writer.join(max(deadline - time.monotonic(), 0.0))
            assert not writer.is_alive(), f"{writer.name} sleeps on a page for ever"

    def results(self):
        return {
            "failures": self.failures,
            "writes": sum(writer.writes for writer in self.writers),
            "in system calls": sum(
                writer.writes for writer in self.writers if isinstance(writer, SystemCallWriter)
            ),
            "refused": sum(writer.refused for writer in self.writers),
            "short": sum(writer.short for writer in self.writers),
        }


def run(state, nr_pages, seed, seconds, kinds=Race.KINDS):
    """Race for some seconds, or to the first loss; return what happened."""
    space = ksmemu.AddressSpace(nr_pages * PAGE)
    start = space.mmap(nr_pages * PAGE)
    space.madvise(start, nr_pages * PAGE, ksmemu.MADV_MERGEABLE)
    race = Race(lambda: space.view(start, nr_pages * PAGE), nr_pages, seed, kinds)
    race.run(seconds)
    results = race.results()
    race.writers.clear()
    space.close()
    return results


def run_renewing(_, seed, seconds, nr_pages=_NR_PAGES):
    """Race over merged pages that are renewed all the time, and never go home; return what happened.

    No ksmd has a part in it: whatever is lost is lost in a renewal. The first half of the pages shows frames
    of zeros, the other half the zero page; a writer puts zeros back often enough.
    """
    half, renewed = nr_pages // 2, 0
    with joined(nr_pages, half) as space:
        runs = [(0, 0, half), (half, ZERO, nr_pages - half)]
        for frame in range(half):
            space.fill_frame(frame, CONTENTS[0])
        assert not any(space.merge(*runs).values())

        def renew():
            nonlocal renewed
            for _ in range(13):
                broken = len(space.broken(0, nr_pages))
                space.renew(*runs)
                renewed += max(broken - len(space.broken(0, nr_pages)), 0)

        race = Race(lambda: space.view(0, nr_pages), nr_pages, seed)
        race.run(seconds, renew)
        results = race.results() | {"renewed": renewed}
        race.writers.clear()
    return results


def hold(
    ksmd, seconds, seed, break_step=None, kinds=Race.KINDS, meanwhile=lambda: None, grace=_GRACE_SECONDS
):
    """Let two workers race under a ksmd, do something meanwhile, and return what happened.

    AssertionError: a write was lost, or a writer sleeps for ever.
    """
    with Worker(ksmd.directory, break_step) as left, Worker(ksmd.directory, break_step) as right:
        try:
            for worker in (left, right):
                worker.start(run, _NR_PAGES, f"{seed}/{worker is left}", seconds, kinds)
            meanwhile()
            deadline = time.monotonic() + seconds + grace
            results = [w.finish(deadline - time.monotonic()) for w in (left, right)]
        finally:
            for worker in (left, right):
                worker.kill()
    lost = [failure for result in results for failure in result.pop("failures")]
    assert not lost, f"lost with seed {seed}: {lost}"
    return {name: results[0][name] + results[1][name] for name in results[0]}


def hold_as_this_user(_, seconds, seed, kinds=Race.KINDS):
    """Let a worker, of whatever user, have a ksmd and a race of its own; return what happened."""
    with tempfile.TemporaryDirectory() as directory, Ksmd(directory, **FULL_SPEED) as ksmd:
        results = hold(ksmd, seconds, seed, kinds=kinds)
        _, results["is user mode"] = _core.probe_userfaultfd()
        return results | ksmd.stats()
