"""A worker that has lost its connection, and not its life, joins the same ksmd again: all is as it was."""

import contextlib
import os
import signal
import socket

import pytest

from tests.support import books, crew, forking, procmaps
from tests.support.books import Member
from tests.support.waiting import wait_until

NR_PAGES = 61
CONTENTS = [0, *range(1, NR_PAGES)]
NR_ALONE = 11
"""Pages at the beginning that a test lets all other members unmap."""
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1, "smart_scan": 0}


@contextlib.contextmanager
def borrowed(fd):
    """Yield a descriptor of the agent's as a socket, or None if it is none (any more)."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        yield None
        return
    try:
        yield sock
    finally:
        sock.detach()


def orders(state):
    """Return the sockets, by inode, on which this process takes orders: their other end has no name."""
    found = {}
    for fd in procmaps.descriptors(os.getpid()):
        with borrowed(fd) as sock, contextlib.suppress(OSError):  # its other end is gone, or it is
            if sock and sock.type == socket.SOCK_SEQPACKET and not sock.getpeername():
                found[os.fstat(fd).st_ino] = fd
    return found


def talk_garbage(state):
    """Whoever says this is cut off by ksmd."""
    (order,) = orders(state).values()
    os.write(order, b"garbage")


def hang_up(state):
    """As an agent does that cannot tell what it has changed."""
    (order,) = orders(state).values()
    with borrowed(order) as sock:
        sock.shutdown(socket.SHUT_RDWR)


def part(member, how):
    """Let the connection end, and wait for the next one."""
    before = member.call(orders)
    member.call(how)
    wait_until(lambda: (now := member.call(orders)) != before and len(now) == 1, what="a new connection")


def merged(ksmd, crew_of, nr=2):
    members = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(nr)]
    for member in members:
        member.call(crew.put, 0, CONTENTS)
    books.wait_at_rest(ksmd)
    return members


def assert_intact(members, ksmd):
    """All show what they did, and so do the books; what they write now comes home, and merges again."""
    assert members[0].call(crew.differing, 0, CONTENTS) == []
    books.wait_at_rest(ksmd)
    books.check(ksmd, members)
    before = ksmd.read("pages_rehomed")
    members[0].call(crew.put_byte, 13, 7, 1777, 99)
    wait_until(lambda: ksmd.read("pages_rehomed") == before + 7, what="the way home")
    assert members[0].call(crew.bytes_at, 13, 7, 1777) == [99] * 7
    members[0].call(crew.put, 13, CONTENTS[13:20])
    books.wait_at_rest(ksmd)
    assert books.check(ksmd, members).own == 0
    assert members[0].call(crew.differing, 0, CONTENTS) == []


@pytest.mark.parametrize("how", [talk_garbage, hang_up])
def test_what_is_merged_stays_merged(start_ksmd, crew_of, how):
    """What nobody else shows too: the books forget who parted, and the frames wait."""
    ksmd = start_ksmd(**FAST)
    members = merged(ksmd, crew_of)
    members[1].call(crew.unmap, 0, NR_ALONE)
    books.wait_at_rest(ksmd)
    before = books.check(ksmd, members).frames
    merges = ksmd.read("merges")
    for _ in range(3):
        part(members[0], how)
    ksmd.wait_full_scans(3)
    assert ksmd.read("workers") == 2
    assert (ksmd.read("merges"), books.check(ksmd, members).frames) == (merges, before)
    assert_intact(members, ksmd)


def test_it_would_be_noticed_if_the_frames_did_not_wait(start_ksmd, crew_of):
    ksmd = start_ksmd(broken="holders", module="tests.support.ksmd_main", **FAST)
    members = merged(ksmd, crew_of)
    members[1].call(crew.unmap, 0, NR_ALONE)
    part(members[0], talk_garbage)
    with pytest.raises(AssertionError):
        assert_intact(members, ksmd)


def test_what_it_has_from_before_a_fork_is_kept(start_ksmd, crew_of):
    """The ancestor waits too, until all who show some of it have said so again, or are dead."""
    ksmd = start_ksmd(**FAST)
    parent = Member.join(crew_of(ksmd), NR_PAGES)
    parent.call(crew.fill_unique, 0, NR_PAGES, 7)
    books.wait_at_rest(ksmd)
    ksmd.write("run", 0)  # else both merge what the ancestor holds
    ancestor = parent.call(_own_inode)
    child = parent.call(forking.fork)
    wait_until(lambda: ksmd.read("workers") == 2, what="the child")
    parent.call(forking.call_child, child, crew.unmap, 0, NR_ALONE)
    for _ in range(3):
        part(parent, talk_garbage)
    assert ancestor in procmaps.inodes(ksmd.pid)
    parent.call(forking.end, child, signal.SIGKILL)
    part(parent, talk_garbage)
    assert parent.call(crew.is_unique, 0, NR_PAGES, 7)
    ksmd.write("run", 1)
    parent.call(crew.put_byte, 0, NR_PAGES, 0, 1)
    wait_until(lambda: ancestor not in procmaps.inodes(ksmd.pid), what="the end of the ancestor")


def _own_inode(state):
    return next(m.inode for m in procmaps.mappings(os.getpid(), state.start) if "s" in m.perms)


def test_who_dies_before_it_comes_back_frees_what_it_showed(start_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    members = merged(ksmd, crew_of)
    part(members[0], talk_garbage)
    for member in members:
        member.worker.kill()
    wait_until(lambda: ksmd.read("pool_bytes") == 0 == ksmd.read("workers"), what="the end of all frames")
