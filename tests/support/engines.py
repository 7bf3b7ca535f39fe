"""The kernel's KSM and ksmemu behind one face, so that one workload runs on both.

A workload is a function of an engine. It makes members, lets them call functions of `engine.crew`, and
lets the engine come to rest; what it returns, or what the engine noted at each rest, is compared.
"""

from dataclasses import dataclass, field
from pathlib import Path

import ksmemu
from tests.support import anonymous, crew, procmaps
from tests.support.processes import Worker
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

AT_REST = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "ksm_zero_pages",
    "stable_node_chains",
    "stable_node_dups",
    "general_profit",
)
_STILL = 20
"""Readings of full_scans that are the same: fewer are also those of a scanner that waits for a processor."""
_NODES_OF_CHAINS = ("stable_node_chains", "stable_node_dups")


class OwnCrew:
    """The functions of a ksmemu worker under the names that both engines know."""

    advise = staticmethod(crew.advise)
    close_space = staticmethod(crew.close_space)
    differing = staticmethod(crew.differing)
    fill_with = staticmethod(crew.fill_with)
    map_again = staticmethod(crew.map_again)
    open_ordinary_space = staticmethod(crew.open_ordinary_space)
    open_space = staticmethod(crew.open_space)
    put = staticmethod(crew.put)
    put_byte = staticmethod(crew.put_byte)
    unmap = staticmethod(crew.unmap)

    @staticmethod
    def discard(state, first, nr):
        """ksmemu's way to throw pages away: unmap them, map and advise them anew."""
        at = state.start + first * PAGE
        state.space.munmap(at, nr * PAGE)
        state.space.mmap(nr * PAGE, at)
        state.space.madvise(at, nr * PAGE, ksmemu.MADV_MERGEABLE)

    @staticmethod
    def set_merge(_, on):
        """Call the prctl."""
        ksmemu.set_memory_merge(on)

    @staticmethod
    def leave_the_rest_out(_):
        """Of the process only its spaces are mergeable."""


@dataclass
class Engine:
    """One of the two. `notes` are the figures of each rest so far."""

    ksmd: object
    crew: object
    started: list = field(default_factory=list)
    idle: list = field(default_factory=list)
    members: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    proc: Path = Path("/proc")
    _sleep: int | None = None

    def _worker(self):
        if self.idle:
            return self.idle.pop()
        worker = Worker(getattr(self.ksmd, "directory", None))
        self.started.append(worker)
        return worker

    def member(self, nr_pages, opener="open_space"):
        """Return a member with a mapped and advised space; members register in this order."""
        member = Member(self, self._worker(), opener, nr_pages)
        self.members.append(member)
        return member

    def rest(self, *, chains=True):
        """Scan until nothing changes any more, stop, and note the figures.

        Chains and dups are left out where the kernel has reason not to have pruned them yet: it does so
        only where it searches.
        """
        figures = self._scan_until_still()
        if not chains:
            figures = {name: value for name, value in figures.items() if name not in _NODES_OF_CHAINS}
        figures["processes"] = [member.figures() for member in self.members]
        self.notes.append(figures)
        return figures

    def _scan_until_still(self):
        last = []

        def is_still():
            self.ksmd.write("run", 1)
            self.ksmd.wait_full_scans(3)
            self.ksmd.write("run", 0)
            last.append({name: self.ksmd.read(name) for name in AT_REST})
            return last[-2:-1] == last[-1:] and last[-1]["pages_volatile"] == 0

        wait_until(is_still, 100.0, "rest")
        return last[-1]

    def unmerge(self):
        self.ksmd.write("run", 2)

    def note(self):
        self.notes.append({name: self.ksmd.read(name) for name in AT_REST})

    def leave(self):
        """End a workload: nothing is merged, no space is left; workers stay for the next one."""
        for member in self.members:
            member.close()
        self.members.clear()
        self._forget_spaces()
        self.unmerge()

    def _forget_spaces(self):
        """Scan until ksmd has none left: a worker that maps anew is then the last one again."""
        self.ksmd.write("sleep_millisecs", 0)
        self.ksmd.write("run", 1)
        seen = []

        def has_stopped():
            seen.append(self.ksmd.read("full_scans"))
            return len(set(seen[-_STILL:])) == 1 and len(seen) >= _STILL

        wait_until(has_stopped, what="the last space to go")

    def step(self):
        """Scan everything once; between two steps ksmd sleeps, from the first on."""
        before = self.ksmd.read("full_scans")
        if self._sleep is None:
            self._sleep = 1_000_003
            self.ksmd.write("sleep_millisecs", self._sleep)
            self.ksmd.write("run", 1)
        else:
            self._sleep ^= 1  # a write that changes it wakes ksmd
            self.ksmd.write("sleep_millisecs", self._sleep)
        wait_until(lambda: self.ksmd.read("full_scans") > before, what="a full scan")

    def close(self):
        for worker in self.started:
            worker.close()


class Member:
    """A worker with one space, on either engine."""

    def __init__(self, engine, worker, opener, nr_pages):
        self._engine, self._worker = engine, worker
        self.space = worker.call(getattr(engine.crew, opener), nr_pages)
        self.is_open = True

    def figures(self):
        """Return the files of its process, to the byte; what ksmemu says there is what its mappings show."""
        if not self.is_open:
            return None
        files = process_files(self._engine.proc, self.space[0])
        if self._engine.crew is not anonymous:
            figures = dict(line.split() for line in files["ksm_stat"].splitlines())
            found = procmaps.recount([self.space])
            assert found.broken == 0
            shown = int(figures["ksm_merging_pages"]) + int(figures["ksm_zero_pages"])
            assert found.merged + found.zero == shown
        return files

    def exit(self):
        """Let the worker end."""
        self._worker.close()
        self.is_open = False

    def close(self):
        if self.is_open:
            self._worker.call(self._engine.crew.close_space)
            self._engine.idle.append(self._worker)
            self.is_open = False

    def __getattr__(self, name):
        """Return the crew's function of this name as a method: member.put(0, [1, 2])."""
        function = getattr(self._engine.crew, name)
        return lambda *args: self._worker.call(function, *args)


def process_files(proc, pid):
    """Return the text of the files of a process under a proc folder."""
    return {name: (proc / str(pid) / name).read_text() for name in ("ksm_stat", "ksm_merging_pages")}
