"""A forked child sees its memory as it was at the fork, and shares no later write with its parent."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import threading
from types import SimpleNamespace

import multiprocess
import numpy as np
import pytest

import ksmemu
from ksmemu import Ksmd
from tests.support import books, crew, explained, forking, leftovers, procmaps
from tests.support.books import Member
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NR_PAGES, NR_SHARED = 101, 61
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1, "smart_scan": 0}
MAX_ANCESTORS = 16
"""Source: KSMEMU_MAX_ANCESTORS."""
OWN = 1
"""The own object of a space that has been forked is a memfd, as its ancestors are."""


def contents(seed, zeros=7):
    """What a member holds: pages that others hold too, zeros, and pages of its own."""
    own = range(1000 * seed, 1000 * seed + NR_PAGES - NR_SHARED - zeros)
    return [*range(1, NR_SHARED + 1), *[0] * zeros, *own]


@pytest.fixture
def ksmd(start_ksmd):
    return start_ksmd(**FAST)


@pytest.fixture
def family(ksmd, crew_of):
    """A parent whose memory is merged in part, with another worker's."""
    parent, other = (Member.join(crew_of(ksmd), NR_PAGES) for _ in range(2))
    parent.call(crew.put, 0, contents(1))
    other.call(crew.put, 0, contents(2))
    books.wait_at_rest(ksmd)
    return Family(parent, other)


class Family:
    def __init__(self, parent, other):
        self.parent, self.other = parent, other

    def fork(self):
        return self.parent.call(forking.fork)

    def call(self, child, function, *args):
        return self.parent.call(forking.call_child, child, function, *args)

    def end(self, child, number=0):
        return self.parent.call(forking.end, child, number)

    def pid(self, child):
        return self.parent.call(forking.pid_of, child)

    def members(self, *children):
        """All who have the memory now, with the children named, for a recount."""
        _, start, end = self.parent.space
        return [
            self.parent,
            self.other,
            *[_Child(self, child, (self.pid(child), start, end)) for child in children],
        ]


class _Child:
    def __init__(self, family, child, space):
        self.family, self.child, self.space = family, child, space

    def call(self, function, *args):
        return self.family.call(self.child, function, *args)


def rewrite(member, first, numbers):
    member.call(crew.put, first, numbers)


def assert_holds(member, numbers):
    assert member.call(crew.differing, 0, numbers) == []


def both_write(family, settle=lambda: None):
    """Parent and child write to all kinds of pages, the same and different ones; each sees its own."""
    child = family.members(family.fork())[2]
    assert_holds(child, contents(1))
    mine, its = contents(1), contents(1)
    for step, (member, model) in enumerate([(family.parent, mine), (child, its)] * 3):
        for page in range(step, NR_PAGES, 11):
            model[page] = 100_000 + 1000 * step + page
            rewrite(member, page, [model[page]])
        assert_holds(family.parent, mine)
        assert_holds(child, its)
        settle()
    assert_holds(family.parent, mine)
    assert_holds(child, its)
    assert_holds(family.other, contents(2))
    return child, mine, its


def test_neither_sees_what_the_other_writes(ksmd, family):
    child, mine, its = both_write(family, lambda: ksmd.wait_full_scans(3))
    books.wait_at_rest(ksmd)
    books.check(ksmd, family.members(0))
    assert_holds(family.parent, mine)
    assert_holds(child, its)
    assert family.end(0) == 0
    books.wait_at_rest(ksmd)
    books.check(ksmd, family.members())
    assert_holds(family.parent, mine)


def test_it_would_be_noticed_if_they_shared_the_own_object(ksmd, crew_of):
    members = [Member.join(crew_of(ksmd, "ancestor"), NR_PAGES), Member.join(crew_of(ksmd), NR_PAGES)]
    for seed, member in enumerate(members, 1):
        member.call(crew.put, 0, contents(seed))
    books.wait_at_rest(ksmd)
    ksmd.write("run", 0)  # what both have could be merged before either writes
    with pytest.raises(AssertionError):
        both_write(Family(*members))


def test_pages_that_were_never_written_are_apart_too(ksmd, family):
    """Holes of the own object are shown by each one's own, not by one of both."""
    family.parent.call(crew.unmap, 0, NR_PAGES)
    family.parent.call(crew.map_again, 0, NR_PAGES)
    family.parent.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_MERGEABLE)
    both = family.members(family.fork())
    rewrite(both[0], 3, [5])
    rewrite(both[2], 4, [777_777])
    assert_holds(both[0], [0, 0, 0, 5, *[0] * (NR_PAGES - 4)])
    assert_holds(both[2], [0, 0, 0, 0, 777_777, *[0] * (NR_PAGES - 5)])
    ksmd.wait_full_scans(3)
    assert both[2].call(crew.own_bytes) >= PAGE


def test_what_is_broken_at_the_fork_is_copied_by_the_kernel(ksmd, family):
    ksmd.write("run", 0)
    family.parent.call(crew.put_byte, 0, 13, 1777, 99)
    child = family.members(family.fork())[2]
    family.parent.call(crew.put_byte, 0, 7, 1777, 11)
    child.call(crew.put_byte, 5, 8, 1777, 22)
    ksmd.write("run", 1)
    books.wait_at_rest(ksmd)
    assert family.parent.call(crew.bytes_at, 0, 13, 1777) == [11] * 7 + [99] * 6
    assert child.call(crew.bytes_at, 0, 13, 1777) == [99] * 5 + [22] * 8
    books.check(ksmd, family.members(0))


def _sum(state, first, nr):
    return int(state.array[first * PAGE : (first + nr) * PAGE].sum())


def _hold_array(state):
    state.array = state.space.ndarray(NR_PAGES * PAGE, np.uint8, state.start)


def _add(state, number):
    state.array += np.uint8(number)


def test_arrays_over_the_memory_stay_valid_in_both(ksmd, family):
    family.parent.call(_hold_array)
    before = family.parent.call(_sum, 0, NR_PAGES)
    child = family.members(family.fork())[2]
    child.call(_add, 1)
    ksmd.wait_full_scans(3)
    assert family.parent.call(_sum, 0, NR_PAGES) == before
    family.parent.call(_add, 2)
    ksmd.wait_full_scans(3)
    family.parent.call(_add, 255)
    child.call(_add, 0)
    assert family.parent.call(_sum, 0, NR_PAGES) == child.call(_sum, 0, NR_PAGES)


def _objects(*pids):
    """Return the blocks, in bytes, of each shared-memory object that processes have open, by inode."""
    found = {}
    for pid in pids:
        for fd, what in procmaps.descriptors(pid).items():
            if "/dev/shm/" in what or "memfd:ksmemu" in what:
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                found[status.st_ino] = status.st_blocks * 512
    return found


def test_no_byte_is_copied(ksmd, family):
    big = 2003
    family.parent.call(crew.close_space)
    family.parent.space = family.parent.call(crew.open_space, big)
    family.parent.call(crew.fill_unique, 0, big, 7)
    books.wait_at_rest(ksmd)
    before = ksmd.read("pages_rehomed")  # one that was caught half written, as zeros
    ksmd.write("run", 0)
    child = family.members(family.fork())[2]
    pids = family.parent.worker.pid, child.space[0], ksmd.pid
    assert sum(_objects(*pids).values()) < 1.1 * big * PAGE
    ksmd.write("run", 1)
    books.wait_at_rest(ksmd)  # what both have goes to frames, and is there twice meanwhile
    assert sum(_objects(*pids).values()) < 1.1 * big * PAGE
    assert ksmd.read("pages_rehomed") == before
    child.call(crew.put_byte, 0, big, 0, 1)
    wait_until(lambda: ksmd.read("pages_rehomed") - before > 0.9 * big, what="the way home")
    books.wait_at_rest(ksmd)
    assert 1.9 * big * PAGE < sum(_objects(*pids).values()) < 2.1 * big * PAGE


def test_what_both_have_rewritten_is_given_back(ksmd, family):
    """The ancestor holds no more than somebody shows; in the end nobody has it."""
    ancestor = family.parent.call(_own_inode)
    child = family.members(family.fork())[2]
    for member in (family.parent, child):
        rewrite(member, 0, range(7001, 7001 + NR_PAGES))
    books.wait_at_rest(ksmd)
    ksmd.wait_full_scans(3)
    assert _objects(child.space[0])[ancestor] == 0
    assert ancestor not in _objects(ksmd.pid)
    assert family.end(0) == 0
    rewrite(family.parent, 0, [777_777])
    books.wait_at_rest(ksmd)
    assert family.end(family.fork()) == 0
    assert ancestor not in _objects(family.parent.worker.pid)


def _own_inode(state):
    return next(m.inode for m in procmaps.mappings(os.getpid(), state.start) if "s" in m.perms)


def test_the_counters_of_the_child_start_at_zero(ksmd, family):
    """And count what a scan has seen, as the kernel's."""
    ksmd.write("run", 0)
    pid = family.pid(family.fork())
    stat = ksmd.directory / "proc" / str(pid) / "ksm_stat"
    wait_until(stat.exists, what="the figures of the child")
    wait_until(lambda: ksmd.read("workers") == 3, what="the child")
    figures = dict(line.split(maxsplit=1) for line in stat.read_text().splitlines())
    assert (figures["ksm_rmap_items"], figures["ksm_merging_pages"]) == ("0", "0")
    ksmd.write("run", 1)
    books.wait_at_rest(ksmd)
    figures = dict(line.split(maxsplit=1) for line in stat.read_text().splitlines())
    assert figures["ksm_merging_pages"] == str(NR_PAGES), explained.totals(ksmd)


def _grow(state, generation, last):
    """Write a page, and let a child go on; return what each generation finds wrong in the end."""
    crew.put(state, generation, [50_000 + generation])
    expected = [*range(50_000, 50_000 + generation + 1), *contents(1)[generation + 1 :]]
    deeper = []
    if generation < last:
        child = forking.fork(state)
        deeper = forking.call_child(state, child, _grow, generation + 1, last)
        forking.end(state, child)
    return [crew.differing(state, 0, expected), *deeper]


def test_a_chain_of_forks_longer_than_ancestors_are_kept(ksmd, family):
    """Each generation writes a page before it forks the next one."""
    child = family.fork()
    assert family.call(child, _grow, 0, MAX_ANCESTORS + 5) == [[]] * (MAX_ANCESTORS + 6)
    assert_holds(family.parent, contents(1))
    ksmd.wait_full_scans(3)
    assert_holds(family.parent, contents(1))


def test_one_parent_of_many_children_keeps_no_more_than_it_needs(ksmd, family):
    model = contents(1)
    for round_ in range(MAX_ANCESTORS + 3):
        child = family.fork()
        model[round_] = 60_000 + round_
        rewrite(family.parent, round_, [model[round_]])
        expected = contents(1)
        expected[:round_] = range(60_000, 60_000 + round_)
        assert family.call(child, crew.differing, 0, expected) == []
        assert family.end(child) == 0
        ksmd.wait_full_scans(2)
    assert_holds(family.parent, model)
    assert family.parent.call(_nr_memfds) <= OWN + MAX_ANCESTORS
    books.wait_at_rest(ksmd)
    books.check(ksmd, family.members())


def test_where_no_ancestor_more_can_be_kept_all_come_home(ksmd, family):
    """Each child is gone before a scan: nobody has what the ancestors show, so nothing of it can merge."""
    seen = []
    for round_ in range(MAX_ANCESTORS + 3):
        ksmd.write("run", 0)
        assert family.end(family.fork()) == 0
        rewrite(family.parent, round_, [60_000 + round_])
        wait_until(lambda: ksmd.read("workers") == 2, what="the end of the child")
        ksmd.write("run", 1)
        books.wait_at_rest(ksmd)
        seen.append(family.parent.call(_nr_memfds))
    assert max(seen) == OWN + MAX_ANCESTORS
    assert seen[-1] < OWN + 5
    assert_holds(family.parent, [*range(60_000, 60_000 + len(seen)), *contents(1)[len(seen) :]])
    books.check(ksmd, family.members())


def _nr_memfds(state):
    return sum("memfd:ksmemu" in what for what in procmaps.descriptors(os.getpid()).values())


@pytest.mark.parametrize("how", ["exits", "is killed", "runs another program"])
def test_a_child_that_ends_at_once_changes_nothing(ksmd, family, how):
    def bear(state):
        pid = os.fork()
        if pid == 0:
            if how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "runs another program":
                os.execv("/bin/true", ["/bin/true"])
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    for _ in range(5):
        family.parent.call(bear)
    assert_holds(family.parent, contents(1))
    rewrite(family.parent, 0, contents(3))
    books.wait_at_rest(ksmd)
    assert_holds(family.parent, contents(3))
    books.check(ksmd, family.members())


def _digest(state):
    return hashlib.sha256(state.space.read(state.start, NR_PAGES * PAGE)).hexdigest()


def _bear_and_forget(state):
    """Fork a child that waits to be killed; return its pid."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def test_a_child_outlives_its_parent(ksmd, family):
    """Nobody is left to ask it: its memory is read from outside."""
    _, start, end = family.parent.space
    digest = family.parent.call(_digest)
    pid = family.parent.call(_bear_and_forget)
    wait_until(lambda: ksmd.read("workers") == 3, what="the child")
    family.parent.worker.kill()
    ksmd.wait_full_scans(5)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        assert hashlib.sha256(memory.read(end - start)).hexdigest() == digest
    family.parent.space = pid, start, end
    books.wait_at_rest(ksmd)
    books.check(ksmd, family.members())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: ksmd.read("workers") == 1, what="the end of the child")
    books.wait_at_rest(ksmd)
    books.check(ksmd, [family.other])


def a_child_that_is_late_keeps_its_bytes(ksmd, family):
    """Parent and other give up all frames before ksmd has heard what the child shows."""
    os.kill(ksmd.pid, signal.SIGSTOP)
    child = family.fork()
    pid = family.pid(child)
    os.kill(pid, signal.SIGSTOP)
    for member in (family.parent, family.other):
        member.call(crew.unmap, 0, NR_PAGES - 1)
    os.kill(ksmd.pid, signal.SIGCONT)
    wait_until(lambda: ksmd.read("pages_shared") == 0, what="giving up")
    family.other.call(crew.map_again, 0, NR_PAGES - 1)
    family.other.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_MERGEABLE)
    rewrite(family.other, 0, [9001 + page // 2 for page in range(NR_PAGES)])
    books.wait_at_rest(ksmd)
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: ksmd.read("workers") == 3, what="the child")
    assert family.call(child, crew.differing, 0, contents(1)) == []
    books.wait_at_rest(ksmd)
    assert family.call(child, crew.differing, 0, contents(1)) == []


def test_a_child_that_is_late_keeps_its_bytes(ksmd, family):
    a_child_that_is_late_keeps_its_bytes(ksmd, family)


def test_it_would_be_noticed_if_frames_of_the_late_child_were_freed(start_ksmd, crew_of):
    ksmd = start_ksmd(broken="holders", module="tests.support.ksmd_main", **FAST)
    members = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(2)]
    for seed, member in enumerate(members, 1):
        member.call(crew.put, 0, contents(seed))
    books.wait_at_rest(ksmd)
    with pytest.raises(AssertionError):
        a_child_that_is_late_keeps_its_bytes(ksmd, Family(*members))


def test_forks_while_there_is_no_ksmd(ksmd, family):
    os.kill(ksmd.pid, signal.SIGKILL)
    ksmd.close()
    child, mine, its = both_write(family)
    with Ksmd(ksmd.directory, **FAST) as successor:
        wait_until(lambda: successor.read("workers") == 3, what="the family")
        books.wait_at_rest(successor)
        books.check(successor, family.members(0))
        assert_holds(family.parent, mine)
        assert_holds(child, its)
        assert_holds(family.other, contents(2))


def test_a_family_is_taken_over(ksmd, family):
    child, mine, its = both_write(family, lambda: ksmd.wait_full_scans(1))
    os.kill(ksmd.pid, signal.SIGKILL)
    ksmd.close()
    rewrite(child, 0, [1, 2, 3])
    its[:3] = [1, 2, 3]
    with Ksmd(ksmd.directory, **FAST) as successor:
        books.wait_at_rest(successor)
        books.check(successor, family.members(0))
        assert_holds(family.parent, mine)
        assert_holds(child, its)


def _map_in_child(state, queue):
    expected = crew.differing(state, 0, contents(1))
    crew.put(state, 0, contents(5))
    queue.put([expected, crew.differing(state, 0, contents(5))])


def _by_multiprocess(state, method):
    context = multiprocess.get_context(method)
    queue = context.Queue()
    inherits = method == "fork"
    child = context.Process(
        target=_map_in_child if inherits else _own_space_in_child, args=(state if inherits else 0, queue)
    )
    child.start()
    said = queue.get(timeout=30)
    child.join(30)
    queue.close()
    queue.join_thread()
    return said, child.exitcode, crew.differing(state, 0, contents(1))


def _own_space_in_child(_, queue):
    """Nothing is inherited: the child makes a space of its own, and ends without closing it."""
    state = SimpleNamespace()
    crew.open_space(state, NR_PAGES)
    crew.put(state, 0, contents(5))
    queue.put([[], crew.differing(state, 0, contents(5))])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method_of_multiprocess(ksmd, family, method):
    assert family.parent.call(_by_multiprocess, method) == ([[], []], 0, [])
    wait_until(lambda: ksmd.read("workers") == 2, what="the end of the child")
    books.wait_at_rest(ksmd)
    books.check(ksmd, family.members())


def _fork_under_fire(state, nr_forks, seed):
    """Threads write and check, while the process forks; each child finds whole pages of one writer's."""
    over, failures = threading.Event(), []

    def write(first):
        chooser, model = random.Random(f"{seed}/{first}"), {}
        while not over.is_set():
            page = chooser.randrange(first, NR_PAGES, 3)
            if page in model and crew.differing(state, page, [model[page]]):
                failures.append(f"page {page}: not {model[page]}")
                over.set()
            model[page] = chooser.randrange(23)
            crew.put(state, page, [model[page]])

    writers = [threading.Thread(target=write, args=(first,)) for first in range(3)]
    for writer in writers:
        writer.start()
    ended = []
    for _ in range(nr_forks):
        pid = os.fork()
        if pid == 0:
            before = state.space.read(state.start, NR_PAGES * PAGE)
            for _ in range(50):
                if state.space.read(state.start, NR_PAGES * PAGE) != before:
                    os._exit(3)
            os._exit(0)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    over.set()
    for writer in writers:
        writer.join()
    return failures, ended


def test_forks_in_the_middle_of_writing_and_merging_lose_nothing(ksmd, family, show):
    seed = random.randrange(1 << 32)
    show(f"seed {seed}")
    failures, ended = family.parent.call(_fork_under_fire, 31, seed)
    assert failures == [], f"seed {seed}"
    assert ended == [0] * 31, f"seed {seed}: a child saw another's write"
    books.wait_at_rest(ksmd)
    books.check(ksmd, family.members())


def _start_a_program(state):
    run = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, stdout=subprocess.PIPE, check=True)
    ours = ("userfaultfd", "/dev/shm/", "memfd:ksmemu", "pagemap", "inotify", "eventfd")
    return [line for line in run.stdout.decode().splitlines() if any(name in line for name in ours)]


def test_a_program_started_by_an_advised_process_inherits_nothing(ksmd, family):
    assert family.parent.call(_start_a_program) == []
    assert_holds(family.parent, contents(1))


def _fork_without_room(state):
    """Fork with ever more descriptors left; return how the children end."""
    nr, limits, ended = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE), []
    for more in (0, 1, 2, 3, 5, 8, 13):
        resource.setrlimit(resource.RLIMIT_NOFILE, (nr + more, limits[1]))
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(bool(crew.differing(state, 0, contents(1))))
            except ValueError as error:
                os._exit(0 if "closed" in str(error) else 4)
            except BaseException:
                os._exit(5)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return ended


def test_a_child_without_descriptors_goes_on_alone(ksmd, family):
    """Its memory is its own where there was room to divide it, else it is closed; the parent has all."""
    assert family.parent.call(_fork_without_room) == [0] * 7
    assert_holds(family.parent, contents(1))
    rewrite(family.parent, 0, contents(3))
    books.wait_at_rest(ksmd)
    assert_holds(family.parent, contents(3))


def test_nothing_is_left_of_a_family(ksmd, family):
    for _ in range(3):
        child = family.fork()
        family.call(child, crew.put, 0, contents(4))
        rewrite(family.parent, 0, contents(3))
        family.call(child, crew.close_space)
        assert family.end(child) == 0
    books.wait_at_rest(ksmd)
    family.parent.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_UNMERGEABLE)
    assert family.parent.call(leftovers.of_worker)["mappings of the space"] <= 2
    family.parent.call(crew.close_space)
    assert family.parent.call(_nr_memfds) == 0
    for member in (family.parent, family.other):
        member.worker.kill()
    wait_until(lambda: ksmd.read("workers") == 0, what="the end of all")
    books.wait_written(ksmd)
    assert (ksmd.read("pool_bytes"), ksmd.read("spaces")) == (0, 0)
    assert not [what for what in procmaps.descriptors(ksmd.pid).values() if "memfd:ksmemu" in what]
