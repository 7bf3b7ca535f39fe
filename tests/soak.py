"""The soak: workers do whatever programs do, ksmd and workers are stopped, retuned and killed, at random.

    make soak MINUTES=60 [SEED=n]

Every byte is checked against a model outside the shared memory, and every ten seconds the books against a
recount. It ends with 1 when anything was lost, left behind or hung.
"""

import argparse
import collections
import mmap
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback

import numpy as np

from ksmemu import Ksmd, KsmError
from tests.support import books, leftovers, procmaps
from tests.support.soaker import COUNTS, NR_THREADS, serve
from tests.support.waiting import run_for, wait_until

NR_WORKERS = 4

_AT_ONCE = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1, "smart_scan": 0}
BOOKS_SECONDS = 10.0
_ANSWER_SECONDS = 40.0
TURN_SECONDS = 40.0
_STATS = ("merges", "pages_broken", "pages_rehomed", "pages_renewed", "verify_refusals")
_TUNABLES = {
    "pages_to_scan": (97, 1009, 1_000_003),
    "sleep_millisecs": (0, 1, 17),
    "smart_scan": (0, 1),
    "use_zero_pages": (0, 1),
}
_WHEN_UNMERGED = {"max_page_sharing": (2, 7, 256), "merge_across_nodes": (0, 1)}
"""What can be changed only while nothing is merged."""
_REFUSALS = ("some pages could not be unmerged", "pages are shared")
"""Threads that change their advice all the time may outrun run=2; who was stopped may be late."""
_ZERO_AT_THE_END = ("workers", "spaces", "pages_shared", "pages_sharing", "pages_tracked", "pool_bytes")


class SoakError(AssertionError):
    """Something was lost or left behind, or does not go on."""


class SoakWorker:
    """One worker process, as the driver sees it."""

    def __init__(self, directory, seed):
        shape = (NR_THREADS, len(COUNTS))
        self.counts = np.frombuffer(mmap.mmap(-1, 8 * shape[0] * shape[1]), np.uint64).reshape(shape)
        self._moved = self.counts[:, 0].copy(), time.monotonic()
        self._control, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                serve(theirs, directory, seed, self.counts)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        theirs.close()

    def ask(self, request):
        self._control.send(request)
        if not self._control.poll(_ANSWER_SECONDS):
            raise SoakError(f"worker {self.pid} does not answer: {request}")
        failure, answer = self._control.recv()
        if failure:
            raise SoakError(f"worker {self.pid}: {failure}")
        return answer

    def check(self):
        """Each thread ends its turns, sooner or later, and finds what it left."""
        if self.total()["failures"]:
            self.ask("go")  # it says which
        before, since = self._moved
        turns = self.counts[:, 0].copy()
        if (turns != before).all():
            self._moved = turns, time.monotonic()
        elif time.monotonic() - since > TURN_SECONDS:
            raise SoakError(f"worker {self.pid}: threads hang after {turns} turns")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.end(-signal.SIGKILL)

    def end(self, wanted):
        """Wait for the end; return what its threads have counted."""
        _, status = os.waitpid(self.pid, 0)
        self._control.close()
        if os.waitstatus_to_exitcode(status) != wanted:
            raise SoakError(f"worker {self.pid} ended with {os.waitstatus_to_exitcode(status)}")
        return self.total()

    def total(self):
        """Return what its threads have counted so far."""
        return collections.Counter(dict(zip(COUNTS, self.counts.sum(axis=0).tolist(), strict=True)))


class Soak:
    """The driver: one thing after the other, while the workers go on."""

    def __init__(self, directory, seed):
        self.directory, self.seed = directory, seed
        self.random = random.Random(seed)
        self.done = collections.Counter()
        self.names = procmaps.shm_names()
        self.workers, self.nr_born = [], 0
        self.start_ksmd()
        self.held = leftovers.of_busy_ksmd(self.ksmd)
        for _ in range(NR_WORKERS):
            self.bear()

    # ---- what may happen ----------------------------------------------------------------------------

    def let_be(self):
        pass

    def stop_ksmd(self):
        self.stop(self.ksmd.pid)
        self.done["stops"] += 1

    def stop_worker(self):
        self.stop(self.random.choice(self.workers).pid)
        self.done["stops"] += 1

    def stop(self, pid):
        os.kill(pid, signal.SIGSTOP)
        self.pause(0.7)
        os.kill(pid, signal.SIGCONT)

    def retune(self):
        name = self.random.choice(list(_TUNABLES))
        self.ksmd.write(name, self.random.choice(_TUNABLES[name]))
        self.done["retunings"] += 1

    def stop_scanning(self):
        self.ksmd.write("run", 0)
        self.pause(0.3)
        self.ksmd.write("run", 1)

    def unmerge(self):
        """Unmerge everything, and change what can be changed only then."""
        name = self.random.choice(list(_WHEN_UNMERGED))
        try:
            self.ksmd.write("run", 2)
            self.ksmd.write(name, self.random.choice(_WHEN_UNMERGED[name]))
        except KsmError as error:
            if not any(reason in str(error) for reason in _REFUSALS):
                raise
            self.done["unmergings refused"] += 1
        else:
            self.done["unmergings"] += 1
        self.ksmd.write("run", 1)

    def kill_worker(self):
        worker = self.workers.pop(self.random.randrange(len(self.workers)))
        self.done += worker.kill()
        self.done["workers killed"] += 1
        self.bear()

    def let_worker_leave(self):
        worker = self.random.choice(self.workers)
        worker.ask("leave")
        self.workers.remove(worker)
        self.done += worker.end(0)
        self.bear()

    def kill_ksmd(self):
        """A new one takes over what the workers have merged."""
        self.note_stats()
        os.kill(self.ksmd.pid, signal.SIGKILL)
        self.pause(0.3)
        self.ksmd.close()
        self.start_ksmd()
        self.done["ksmd killed"] += 1

    # ---- the course ---------------------------------------------------------------------------------

    def run(self, minutes):
        began, books_at = time.monotonic(), time.monotonic() + BOOKS_SECONDS
        while time.monotonic() - began < 60 * minutes:
            act = self.random.choices(list(_ACTIONS), list(_ACTIONS.values()))[0]
            act(self)
            self.pause(0.3)
            for worker in self.workers:
                worker.check()
            if time.monotonic() > books_at:
                self.check_books()
                self.tell(f"{time.monotonic() - began:6.0f} s")
                books_at = time.monotonic() + BOOKS_SECONDS
        self.end()

    def pause(self, seconds):
        for _ in run_for(self.random.uniform(0.0, seconds)):
            pass

    def start_ksmd(self):
        self.ksmd = Ksmd(self.directory, **_AT_ONCE)
        self.noted = collections.Counter()

    def bear(self):
        self.workers.append(SoakWorker(self.directory, f"{self.seed}/{self.nr_born}"))
        self.nr_born += 1

    def check_books(self):
        """All rest until nothing changes any more; then the books are what is mapped."""
        tunables = {name: self.ksmd.read(name) for name in _AT_ONCE}
        for name, value in _AT_ONCE.items():
            self.ksmd.write(name, value)
        spaces = [(worker.pid, *bounds) for worker in self.workers for bounds in worker.ask("rest")]
        books.wait_at_rest(self.ksmd)
        found = books.check_spaces(self.ksmd, spaces)
        if not found.inherited:  # what ancestors hold of it is not to be told from outside
            own_bytes = sum(worker.ask("own_bytes") for worker in self.workers)
            books.check_tracked_bytes(self.ksmd, own_bytes, found)
        self.note_stats()
        for name, value in tunables.items():
            self.ksmd.write(name, value)
        for worker in self.workers:
            worker.ask("go")
        self.done["recounts"] += 1

    def note_stats(self):
        """Add what this ksmd has counted since the last time."""
        stats = collections.Counter({name: self.ksmd.read(name) for name in _STATS})
        self.done += stats - self.noted
        self.noted = stats

    def end(self):
        """Everybody leaves, and nothing is left."""
        self.note_stats()
        while self.workers:
            worker = self.workers[-1]
            worker.ask("leave")
            self.workers.pop()
            self.done += worker.end(0)
        wait_until(lambda: not any(map(self.ksmd.read, _ZERO_AT_THE_END)), what="ksmd without anything")
        wait_until(lambda: not self.surplus(), what="ksmd as it was")
        self.ksmd.close()
        if procmaps.children(os.getpid()) or procmaps.shm_names() != self.names:
            raise SoakError(f"left: {procmaps.children(os.getpid())}, {procmaps.shm_names() - self.names}")
        self.tell(f"seed {self.seed}, lost: 0;")

    def surplus(self):
        """Return what ksmd holds more than the first one did before it had a worker."""
        found = leftovers.of_busy_ksmd(self.ksmd)
        more = found["descriptors"] - self.held["descriptors"]
        return more or max(found["shared mappings"] - self.held["shared mappings"], 0)

    def tell(self, head):
        done = sum((worker.total() for worker in self.workers), self.done)
        print(head, ", ".join(f"{done[name]:,} {words}" for name, words in _TOLD.items()), flush=True)  # noqa: T201

    def tell_state(self):
        """Say what there is to say of a failure; the workers say where their threads are."""
        for worker in self.workers:
            os.kill(worker.pid, signal.SIGUSR1)
        print(f"ksmd holds more than at first: {self.surplus()}")  # noqa: T201
        files = [*self.ksmd.control.iterdir(), *(self.ksmd.directory / "stats").iterdir()]
        print({file.name: file.read_text().strip() for file in files if file.is_file()})  # noqa: T201

    def close(self):
        for worker in self.workers:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        self.ksmd.close()


_ACTIONS = {
    Soak.let_be: 4,
    Soak.retune: 4,
    Soak.stop_worker: 3,
    Soak.stop_ksmd: 2,
    Soak.stop_scanning: 1,
    Soak.unmerge: 1,
    Soak.kill_worker: 4,
    Soak.let_worker_leave: 2,
    Soak.kill_ksmd: 1.5,
}
"""What the driver does, and how often."""

_TOLD = {
    "checked_bytes": "bytes checked",
    "merges": "merges",
    "pages_broken": "breaks",
    "pages_rehomed": "rehomes",
    "pages_renewed": "renewals",
    "verify_refusals": "refused by verify",
    "writes": "pages written",
    "discards": "discards",
    "advices": "advices",
    "forks": "forks",
    "refused": "system calls refused",
    "workers killed": "workers killed",
    "ksmd killed": "ksmd killed",
    "stops": "stops",
    "retunings": "retunings",
    "unmergings": "unmergings",
    "unmergings refused": "unmergings refused",
    "recounts": "recounts",
}
"""What is told, in this order and these words."""


def run(minutes, seed):
    """Soak; AssertionError: a loss, something left behind, or a hang."""
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(directory, seed)
        try:
            soak.run(minutes)
        except BaseException:
            soak.tell_state()
            raise
        finally:
            soak.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    asked = parser.parse_args()
    print(f"soak of {asked.minutes:g} minutes, seed {asked.seed}", flush=True)  # noqa: T201
    try:
        run(asked.minutes, asked.seed)
    except Exception:
        traceback.print_exc()
        sys.exit(f"seed {asked.seed}: failed")


if __name__ == "__main__":
    main()
