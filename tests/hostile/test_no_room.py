"""/dev/shm is too small: memory comes from elsewhere, or the request is refused; no byte is lost for it.

Everything runs in a mount namespace of its own, where a ballast file says how much room is left.
"""

import errno
import logging
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from ksmemu.cli import commands
from ksmemu.control import launch
from ksmemu.control.reasons import Reason
from tests.support import domains, procmaps
from tests.support.explained import assert_adds_up, totals
from tests.support.namespaces import SmallShmWorker
from tests.support.stores import shown, store
from tests.support.waiting import wait_until

MIB = 1 << 20
PAGE = procmaps.PAGE
NR_PAGES = 1031
# With smart scan equal pages of different age can be looked at in different scans for ever, as in the kernel.
AT_ONCE = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1, "smart_scan": 0}


@pytest.fixture
def crowded(tmp_path):
    """A worker with 16 MiB of /dev/shm, its own ksmd, and two spaces that are merged in full."""
    with SmallShmWorker(16 * MIB) as worker:
        worker.call(_start_ksmd, tmp_path / "ksmd")
        worker.call(_make_twins)
        yield worker
        worker.call(_stop)


def _start_ksmd(state, directory, fuse=False):
    state.ksmd = ksmemu.Ksmd(directory, fuse=fuse, **AT_ONCE)
    state.spaces = []


def _stop(state):
    for space in state.spaces:
        space.close()
    state.ksmd.close()


def _make_space(state, data, label=""):
    space = ksmemu.AddressSpace(len(data), instance=state.ksmd.directory, domain=label)
    space.mmap(len(data), space.start)
    space.madvise_all(MADV_MERGEABLE)
    space.write(space.start, data)
    state.spaces.append(space)
    return space


def _make_twins(state, labels=("",)):
    """Make two equal spaces in each of these domains, and wait until all is merged."""
    state.data = os.urandom(NR_PAGES * PAGE)
    for label in labels * 2:
        _make_space(state, state.data, label)
    _await_sharing(state, len(labels) * NR_PAGES)


def _await_sharing(state, nr):
    wait_until(lambda: state.ksmd.read("pages_sharing") == nr)


def _leave_room(state, nr_bytes):
    """Fill /dev/shm but for so many bytes."""
    room = os.statvfs("/dev/shm")
    with open("/dev/shm/ballast", "ab") as ballast:
        os.posix_fallocate(ballast.fileno(), ballast.tell(), room.f_bavail * room.f_frsize - nr_bytes)


def _make_room(state):
    Path("/dev/shm/ballast").unlink()


def _has_its_bytes(state):
    return all(space.read(space.start, len(state.data)) == state.data for space in state.spaces)


def test_when_shared_memory_is_too_small_a_memfd_serves_and_the_log_says_so(tmp_path):
    with SmallShmWorker(MIB) as worker:
        worker.call(_start_ksmd, tmp_path / "ksmd")
        records, objects = worker.call(_make_twins_and_look)
        worker.call(_stop)
    assert len(records) == 2
    assert all("/dev/shm" in text and "memfd" in text for text in records)
    assert len(objects) == 2
    assert all("memfd:" in path for path in objects)


def _make_twins_and_look(state):
    """Return what the log said, and from which objects the two spaces were mapped before they merged."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("ksmemu").addHandler(handler)
    state.ksmd.write("run", 0)
    state.data = os.urandom(NR_PAGES * PAGE)
    spaces = [_make_space(state, state.data) for _ in range(2)]
    found = [
        mapping.path
        for space in spaces
        for mapping in procmaps.mappings("self", space.start, space.start + space.size)
    ]
    state.ksmd.write("run", 1)
    wait_until(lambda: state.ksmd.read("pages_sharing") == NR_PAGES, what="merging")
    assert _has_its_bytes(state)
    return records, found


def test_a_pool_without_room_leaves_pages_unmerged_and_ksmd_alive(tmp_path):
    with SmallShmWorker(MIB) as worker:
        worker.call(_start_crammed_ksmd, tmp_path / "ksmd")
        worker.call(_see_that_the_pool_stays_small)
        worker.call(_stop)


def test_a_pool_that_would_not_fit_is_a_memfd_and_everything_merges(tmp_path):
    with SmallShmWorker(MIB) as worker:
        worker.call(_start_ksmd, tmp_path / "ksmd")
        worker.call(_see_that_twins_merge)
        worker.call(_stop)


def _start_crammed_ksmd(state, directory):
    launch.MODULE = "tests.support.crammed_ksmd"
    _start_ksmd(state, directory)


def _see_that_twins_merge(state):
    state.data = os.urandom(NR_PAGES * PAGE)
    for _ in range(2):
        _make_space(state, state.data)
    wait_until(lambda: state.ksmd.read("pages_sharing") == NR_PAGES, what="merging")
    assert state.ksmd.read("pool_bytes") == NR_PAGES * PAGE > MIB
    assert _has_its_bytes(state)


def _see_that_the_pool_stays_small(state):
    state.data = os.urandom(NR_PAGES * PAGE)
    for _ in range(2):
        _make_space(state, state.data)
    state.ksmd.wait_full_scans(7)
    assert state.ksmd.read("pool_bytes") <= MIB
    state.ksmd.write("run", 0)
    found = totals(state.ksmd)
    assert found.keys() <= {Reason.MERGED, Reason.NO_ROOM}, found
    assert found[Reason.NO_ROOM] > 0
    assert_adds_up(state.ksmd)
    assert _has_its_bytes(state)


def test_spaces_together_are_promised_no_more_than_there_is(tmp_path):
    """Each would fit, and those of each domain; all would not: none of them may end its writer by SIGBUS."""
    with SmallShmWorker(16 * MIB) as worker:
        worker.call(_start_ksmd, tmp_path / "ksmd")
        worker.call(_fill_five_spaces)
        worker.call(_stop)


def _fill_five_spaces(state):
    spaces = []
    for label in "abcab":
        space = ksmemu.AddressSpace(7 * MIB, instance=state.ksmd.directory, domain=label)
        space.mmap(space.size)
        space.madvise_all(MADV_MERGEABLE)
        spaces.append(space)
    for space in spaces:
        space.write(space.start, os.urandom(space.size))
    state.spaces = spaces


def test_run_2_without_room_is_refused_and_put_back_to_0(crowded):
    crowded.call(_leave_room, MIB)
    log = crowded.call(_run_2_is_refused)
    assert "run" in log
    assert "no room" in log
    assert crowded.call(_has_its_bytes)
    crowded.call(_make_room)
    crowded.call(_run_2_unmerges)
    assert crowded.call(_has_its_bytes)


def _run_2_is_refused(state, sharing=NR_PAGES):
    before = _what_is_mapped(state)
    with pytest.raises(ksmemu.KsmError, match="run=2 refused, it is 0"):
        state.ksmd.write("run", 2)
    assert state.ksmd.read("run") == 0
    assert _what_is_mapped(state) == before
    assert state.ksmd.read("pages_sharing") == sharing
    return (state.ksmd.directory / "ksmd.log").read_text()


def test_run_2_that_each_domain_alone_has_room_for_and_all_have_not_is_refused(tmp_path):
    labels = ("a", "b", "c")
    with SmallShmWorker(32 * MIB) as worker:
        worker.call(_start_ksmd, tmp_path / "ksmd")
        worker.call(_make_twins, labels)
        needed = 2 * NR_PAGES * PAGE
        assert worker.call(_worst_cases) == [needed] * 3
        assert "24.2 MiB needed if all that is merged is written to" in worker.call(_status)
        worker.call(_leave_room, 2 * needed + MIB)
        log = worker.call(_run_2_is_refused, 3 * NR_PAGES)
        assert f"no room for the {3 * needed} bytes" in log
        assert worker.call(_worst_cases) == [needed] * 3
        worker.call(_make_room)
        worker.call(_run_2_unmerges)
        assert worker.call(_has_its_bytes)
        assert worker.call(_worst_cases) == [0] * 3
        worker.call(_stop)


def _worst_cases(state):
    """Return the worst case of each domain, of which that of all is the sum."""
    found = [domains.read(state.ksmd, name, "unmerge_bytes") for name in domains.names(state.ksmd)]
    assert sum(found) == state.ksmd.read("unmerge_bytes")
    return found


def _status(state):
    return CliRunner().invoke(commands, ["status", "--dir", str(state.ksmd.directory)]).output


@pytest.mark.root
def test_run_2_without_room_gets_its_errno_through_fuse(tmp_path):
    with SmallShmWorker(16 * MIB) as worker:
        worker.call(_start_ksmd, tmp_path / "ksmd", True)
        worker.call(_make_twins)
        worker.call(_leave_room, MIB)
        assert worker.call(_answer_to_run_2) == ("ENOMEM", "0\n")
        worker.call(_make_room)
        assert worker.call(_answer_to_run_2) == (1, "2\n")
        assert worker.call(_has_its_bytes)
        worker.call(_stop)


def _answer_to_run_2(state):
    folder = state.ksmd.directory / "sys/kernel/mm/ksm"
    return store(folder, "run", b"2"), shown(folder, "run")


def _run_2_unmerges(state):
    state.ksmd.write("run", 2)
    assert state.ksmd.read("pages_shared") == 0
    assert state.ksmd.read("run") == 2


def _what_is_mapped(state):
    return [
        mapping
        for space in state.spaces
        for mapping in procmaps.mappings("self", space.start, space.start + space.size)
    ]


def test_unmergeable_without_room_is_eagain_and_everything_stays_mergeable(crowded):
    crowded.call(_leave_room, MIB)
    crowded.call(_unmergeable_is_refused)
    assert crowded.call(_has_its_bytes)
    crowded.call(_make_room)
    crowded.call(_unmergeable_is_obeyed)
    assert crowded.call(_has_its_bytes)


def _unmergeable_is_refused(state):
    before = _what_is_mapped(state)
    with pytest.raises(OSError, match="no room") as caught:
        state.spaces[0].madvise_all(MADV_UNMERGEABLE)
    assert caught.value.errno == errno.EAGAIN
    assert _what_is_mapped(state) == before
    state.ksmd.wait_full_scans(3)
    assert state.ksmd.read("pages_sharing") == NR_PAGES


def _unmergeable_is_obeyed(state):
    state.spaces[0].madvise_all(MADV_UNMERGEABLE)
    start = state.spaces[0].start
    assert all("s" in m.perms for m in procmaps.mappings("self", start, start + len(state.data)))


def test_written_pages_that_find_no_room_at_home_keep_their_bytes(crowded):
    crowded.call(_leave_room, 17 * PAGE)
    crowded.call(_write_anew)
    assert crowded.call(_has_its_bytes)
    crowded.call(_make_room)
    crowded.call(_await_sharing, NR_PAGES)
    assert crowded.call(_has_its_bytes)


def _write_anew(state):
    state.data = os.urandom(len(state.data))
    for space in state.spaces:
        space.write(space.start, state.data)
    state.ksmd.wait_full_scans(11)
