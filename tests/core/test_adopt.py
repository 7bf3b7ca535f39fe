"""Ordinary memory moves into the own object under the eyes of threads that use it."""

import errno
import os
import threading
from pathlib import Path

from tests.support.children import in_child
from tests.support.joined import SPACE, joined
from tests.support.pages import content
from tests.support.procmaps import PAGE, mappings
from tests.support.waiting import wait_until


@in_child
def test_adopted_memory_holds_what_was_written():
    with joined(nr_pages=101, advised=False) as space:
        space.map()
        for page in (0, 7, 8, 97):
            space.write(page, content(page))
        space.advise()
        for page in (0, 7, 8, 97):
            assert space.read(page) == space.object_holds(page) == content(page)
        assert space.read(50) == bytes(PAGE)
        assert [m.perms for m in mappings("self", space.start, space.address(101))] == ["rw-s"]


@in_child
def test_pages_that_were_only_read_stay_holes():
    with joined(nr_pages=101, advised=False) as space:
        space.map()
        assert space.read(13) == bytes(PAGE)
        space.write(17, b"x")
        space.advise()
        assert space.blocks_bytes() == PAGE


@in_child
def test_more_than_is_adopted_at_once_is_adopted_in_turns():
    nr = 2 * 4096 + 101
    with joined(nr_pages=nr, advised=False) as space:
        space.map()
        view = space.view(0, nr)
        for page in range(nr):
            view[page * PAGE] = page % 251
        space.advise()
        assert space.blocks_bytes() == nr * PAGE
        assert all(view[page * PAGE] == page % 251 for page in range(nr))
        del view


def page_table_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmPTE"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@in_child
def test_adopting_a_terabyte_of_hole_allocates_neither_pages_nor_page_tables():
    nr = (1 << 40) // PAGE
    with joined(nr_pages=nr, advised=False) as space:
        space.map()
        for page in (3, nr // 2, nr - 5):
            space.write(page, content(page))
        before = page_table_bytes()
        space.advise()
        assert space.blocks_bytes() == 3 * PAGE
        assert page_table_bytes() - before < 1 << 20
        assert space.read(nr - 5) == content(nr - 5)


class Counting(threading.Thread):
    """Raises a number in each of some pages, and looks whether it is the one it left there."""

    def __init__(self, space, pages):
        super().__init__()
        self.space, self.pages = space, pages
        self.counts = dict.fromkeys(pages, 0)
        self.lost = []
        self.is_over = False

    def run(self):
        words = {page: self.space.view(page).cast("Q") for page in self.pages}
        while not self.is_over and not self.lost:
            for page, word in words.items():
                if word[17] != self.counts[page]:
                    self.lost.append((page, word[17], self.counts[page]))
                self.counts[page] += 1
                word[17] = self.counts[page]


class Reading(Counting):
    """The same by a system call, which writes while the GIL is free."""

    def run(self):
        source = os.memfd_create("source")
        views = {page: self.space.view(page)[:8] for page in self.pages}
        while not self.is_over and not self.lost:
            for page, view in views.items():
                if int.from_bytes(view, "little") != self.counts[page]:
                    self.lost.append((page, bytes(view), self.counts[page]))
                self.counts[page] += 1
                os.pwrite(source, self.counts[page].to_bytes(8, "little"), 0)
                assert self.read_into(view, source) == 8
        os.close(source)

    @staticmethod
    def read_into(view, source):
        """Without privilege a system call does not wait for a frozen page; a write of our own does."""
        while True:
            try:
                return os.preadv(source, [view], 0)
            except OSError as error:
                if error.errno != errno.EFAULT or os.geteuid() == 0:
                    raise
                view[0] = view[0]


@in_child
def test_no_write_is_lost_while_memory_is_adopted():
    nr, step = 23 * 97, 97
    with joined(nr_pages=nr, advised=False) as space:
        space.map()
        pages = range(0, nr, 31)
        threads = [kind(space, pages[index::3]) for index, kind in enumerate([Counting, Reading, Reading])]
        for thread in threads:
            thread.start()
        for first in range(0, nr, step):
            seen = [sum(thread.counts.values()) for thread in threads]
            bounds = space.address(first), space.address(first + step)
            done = space.agent.advise(SPACE, *bounds, True, space.ranges((0, first + step)))
            assert done == (bounds[1], 0)
            for thread, before in zip(threads, seen, strict=True):
                wait_until(lambda t=thread, n=before: sum(t.counts.values()) > n or t.lost)
        for thread in threads:
            thread.is_over = True
            thread.join()
        assert [thread.lost for thread in threads] == [[], [], []]
        for thread in threads:
            for page, count in thread.counts.items():
                word = 17 if type(thread) is Counting else 0
                assert space.view(page).cast("Q")[word] == count
        assert all(thread.counts[page] for thread in threads for page in thread.pages)
