"""merge_pid and unmerge_pid: processes that never called madvise are merged from outside, and may refuse."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ksmemu
from ksmemu import KsmError
from tests.support import crew, procmaps
from tests.support.processes import Worker
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NR_PAGES = 23
FILLED = list(range(1, NR_PAGES + 1))


def own_memory(state):
    """In a worker: 23 pages, filled, and not a word of advice."""
    crew.open_ordinary_space(state, NR_PAGES)
    crew.put(state, 0, FILLED)
    return held()


def held():
    """Return threads and descriptors of this process, without those of figures being read."""
    return procmaps.threads("self"), sorted(
        fd for fd, what in procmaps.descriptors("self").items() if "/proc/" not in what
    )


def map_more(state):
    state.first = state.space
    own_memory(state)


def is_right(state):
    return crew.differing(state, 0, FILLED) == []


def what_is_held(_):
    return held()


@pytest.fixture
def twins(ksmd, start_worker):
    pair = [start_worker() for _ in range(2)]
    for one in pair:
        one.call(own_memory)
    return pair


def merge(ksmd, workers):
    for one in workers:
        ksmd.write("merge_pid", one.pid)
    # They advise by themselves, when they get round to it.
    wait_until(lambda: ksmd.read("workers") >= len(workers), what="the workers to join")
    ksmd.wait_full_scans(3)


def settles_at(ksmd, sharing):
    """Whether pages_sharing comes to be this, and stays so: workers advise when they get round to it."""
    wait_until(lambda: ksmd.read("pages_sharing") == sharing, what=f"{sharing} pages to be shared")
    ksmd.wait_full_scans(3)
    return ksmd.read("pages_sharing") == sharing


def test_workers_that_never_advised_are_merged(ksmd, twins):
    merge(ksmd, twins)
    assert settles_at(ksmd, NR_PAGES)
    assert all(one.call(is_right) for one in twins)
    one = twins[0]
    one.call(crew.put, 3, [77])
    assert settles_at(ksmd, NR_PAGES - 1)
    assert one.call(crew.differing, 3, [77]) == []


def test_without_merge_pid_nothing_happens_to_them(ksmd, start_worker):
    """The negative control; and nothing is held by a process that nobody asked for."""
    one = start_worker()
    before = one.call(what_is_held)
    one.call(own_memory)
    assert one.call(what_is_held) == before
    assert ksmd.read("workers") == ksmd.read("full_scans") == 0


def test_what_they_map_later_is_merged_too(ksmd, twins):
    merge(ksmd, twins)
    for one in twins:
        one.call(map_more)
    assert settles_at(ksmd, 3 * NR_PAGES)
    assert all(one.call(is_right) for one in twins)


def test_both_files_list_the_pids(ksmd, twins):
    assert ksmd.merged_pids() == []
    pids = sorted(one.pid for one in twins)
    for pid in reversed(pids):
        ksmd.write("merge_pid", pid)
    ksmd.write("merge_pid", pids[0])  # once more
    assert ksmd.merged_pids() == pids
    files = [ksmd.directory / "sys/kernel/mm/ksm" / name for name in ("merge_pid", "unmerge_pid")]
    assert [file.read_text().split() for file in files] == [[str(pid) for pid in pids]] * 2
    twins[0].kill()
    wait_until(lambda: ksmd.merged_pids() == [twins[1].pid], what="the dead one to go")


def test_unmerge_pid_really_unmerges(ksmd, twins):
    merge(ksmd, twins)
    assert settles_at(ksmd, NR_PAGES)
    ksmd.write("unmerge_pid", twins[0].pid)
    assert ksmd.merged_pids() == [twins[1].pid]
    start, end = twins[0].call(lambda state: (state.start, state.start + state.space.size))
    found = procmaps.recount([(twins[0].pid, start, end)])
    assert (found.merged, found.own) == (0, NR_PAGES)
    twins[0].call(map_more)
    assert settles_at(ksmd, 0)
    assert all(one.call(is_right) for one in twins)


def test_unmerge_pid_leaves_what_a_process_has_advised_itself(ksmd, twins):
    for one in twins:
        one.call(crew.advise, 0, 7, ksmemu.MADV_MERGEABLE)
    merge(ksmd, twins)
    assert settles_at(ksmd, NR_PAGES)
    ksmd.write("unmerge_pid", twins[0].pid)
    assert settles_at(ksmd, 7)


def test_a_range_that_refuses_is_left_alone(ksmd, twins):
    twins[0].call(crew.advise, 5, 11, ksmemu.MADV_UNMERGEABLE)
    merge(ksmd, twins)
    assert settles_at(ksmd, NR_PAGES - 11)
    twins[0].call(crew.advise, 0, 5, ksmemu.MADV_UNMERGEABLE)  # a refusal that comes later
    ksmd.write("merge_pid", twins[0].pid)
    assert settles_at(ksmd, NR_PAGES - 16)


def refuse(_):
    ksmemu.set_memory_merge(False)


def want(_):
    ksmemu.set_memory_merge(True)


def test_a_process_that_refuses_is_left_alone(ksmd, twins):
    twins[0].call(refuse)
    ksmd.write("merge_pid", twins[1].pid)
    file = ksmd.directory / "sys/kernel/mm/ksm/merge_pid"
    file.write_text(f"{twins[0].pid}\n")  # ksmd.write() says so if it is refused at once
    wait_until(lambda: f"pid {twins[0].pid} refuses" in (ksmd.directory / "ksmd.log").read_text())
    wait_until(lambda: ksmd.merged_pids() == [twins[1].pid], what="the refusal")
    assert settles_at(ksmd, 0)
    assert ksmd.read("workers") == 1


def test_a_process_that_refuses_later_is_unmerged(ksmd, twins):
    merge(ksmd, twins)
    twins[0].call(refuse)
    wait_until(lambda: ksmd.merged_pids() == [twins[1].pid], what="the refusal")
    assert settles_at(ksmd, 0)
    twins[0].call(map_more)
    assert settles_at(ksmd, 0)
    twins[0].call(want)
    assert settles_at(ksmd, 2 * NR_PAGES)


def refused(ksmd, name, pid):
    with pytest.raises(KsmError) as refusal:
        ksmd.write(name, pid)
    return refusal.value.strerror


def test_pids_that_are_none_of_ours(ksmd):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        for pid in (2**31 - 1, 2**22 + 1, stranger.pid):
            assert f"{pid}" in refused(ksmd, "merge_pid", pid)
        refused(ksmd, "merge_pid", 0)
    finally:
        stranger.kill()
        stranger.wait()
    with pytest.raises(ValueError, match="decimal"):
        ksmd.write("merge_pid", -1)
    assert ksmd.merged_pids() == []


def test_junk_is_put_back_and_logged(ksmd, twins):
    ksmd.write("merge_pid", twins[0].pid)
    file = ksmd.directory / "sys/kernel/mm/ksm/merge_pid"
    file.write_text("junk\n")
    wait_until(lambda: file.read_text().split() == [str(twins[0].pid)], what="the pid to be put back")
    assert "merge_pid: store of 'junk' refused" in (ksmd.directory / "ksmd.log").read_text()


@pytest.fixture
def other_users():
    """A process of nobody."""
    command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "sleep", "1000"]
    other = subprocess.Popen(command)
    comm = Path(f"/proc/{other.pid}/comm")
    wait_until(lambda: comm.read_text() == "sleep\n", what="the program")
    yield other
    other.kill()
    other.wait()


@pytest.mark.root
def test_a_process_of_another_user_is_not_touched(ksmd, other_users):
    assert "uid 65534" in refused(ksmd, "merge_pid", other_users.pid)
    assert other_users.poll() is None


@pytest.mark.root
@pytest.mark.parametrize("name", ["merge_pid", "unmerge_pid"])
def test_fuse_gives_each_refusal_its_errno(start_ksmd, other_users, name):
    ksmd = start_ksmd(fuse=True)
    junk = ["junk", "", "-1", "7 ", "0x7", str(2**32), "1 2"]
    expected = dict.fromkeys(junk, errno.EINVAL)
    expected |= dict.fromkeys(["0", str(2**22 + 1), str(2**31)], errno.ESRCH)
    expected[str(other_users.pid)] = errno.EPERM
    file = os.open(ksmd.directory / "sys/kernel/mm/ksm" / name, os.O_RDWR)
    for text, number in expected.items():
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            os.write(file, f"{text}\n".encode())
    with Worker(ksmd.directory) as one:
        one.call(own_memory)
        os.write(file, str(one.pid).encode())
        assert os.pread(file, 99, 0) == (b"%d\n" % one.pid if name == "merge_pid" else b"\n")
    os.close(file)


def test_a_process_that_is_stopped_holds_up_nobody(ksmd, twins):
    merge(ksmd, twins)
    os.kill(twins[0].pid, signal.SIGSTOP)
    ksmd.write("unmerge_pid", twins[0].pid)  # returns
    before = ksmd.read("full_scans")
    wait_until(lambda: ksmd.read("full_scans") > before + 2, what="scans to go on")
    assert twins[0].pid in ksmd.merged_pids(), "it has not obeyed yet"
    os.kill(twins[0].pid, signal.SIGCONT)
    wait_until(lambda: ksmd.merged_pids() == [twins[1].pid], what="it to obey")
    assert settles_at(ksmd, 0)


def a_child_maps(state):
    """Fork; return whether the child, whose pid nobody named, had a space advised."""
    state.space.close()
    pid = os.fork()
    if pid == 0:
        with ksmemu.AddressSpace(NR_PAGES * PAGE) as space:
            space.mmap(NR_PAGES * PAGE)
            os._exit(int(space.is_advised))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_is_not_merged(ksmd, twins):
    merge(ksmd, twins)
    assert twins[0].call(a_child_maps) == 0
