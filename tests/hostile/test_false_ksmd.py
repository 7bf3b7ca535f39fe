"""A ksmd that answers garbage: the advice fails with a reason, and the worker is as it was."""

import contextlib
import errno
import json
import os
import socket

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, wire
from tests.support import procmaps
from tests.support.fakes import PAGE, FalseKsmd

NR_PAGES = 23


def _receive(control):
    """Read a request and drop what came with it, so that its sender is the only holder."""
    request, fds = wire.receive_control(control)
    for fd in fds:
        os.close(fd)
    return request


@contextlib.contextmanager
def _greeted(control, pool):
    """Answer a hello properly, and keep the order socket that came with it."""
    _, (order, pagemap) = wire.receive_control(control)
    os.close(pagemap)
    wire.send_control(control, GOOD, (pool, pool))
    yield
    os.close(order)


@pytest.fixture
def false_ksmd(tmp_path):
    false = FalseKsmd(tmp_path / "false")
    yield false
    false.close()


@pytest.fixture
def pool():
    fd = os.memfd_create("pool")
    os.truncate(fd, NR_PAGES * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def caller(start_worker, tmp_path):
    """A worker with a space that names the directory of the false one."""
    caller = start_worker()
    caller.call(_make_space, tmp_path / "false")
    return caller


def _make_space(state, directory):
    state.space = ksmemu.AddressSpace(NR_PAGES * PAGE, instance=directory)
    state.space.mmap(state.space.size)
    state.data = os.urandom(state.space.size)
    state.space.write(state.space.start, state.data)


def _facts():
    return procmaps.descriptors("self"), procmaps.threads("self")


def _advise(state):
    """Return the errno of the refusal and its text; nothing else has changed."""
    before = _facts()
    with pytest.raises(ksmemu.KsmError) as caught:
        state.space.madvise_all(MADV_MERGEABLE)
    assert _facts() == before
    assert not state.space.is_advised
    assert state.space.read(state.space.start, state.space.size) == state.data
    return caught.value.errno, str(caught.value)


GOOD = {"holder": 1, "pool_bytes": NR_PAGES * PAGE, "tracks": True}
GARBAGE = [
    b"\x00",
    b"null",
    b"[" * 4000,
    b"{" + b" " * 9999,
    json.dumps(GOOD | {"pool_bytes": None}).encode(),
    json.dumps(GOOD | {"pool_bytes": "17"}).encode(),
    json.dumps(GOOD | {"pool_bytes": 0}).encode(),
    json.dumps(GOOD | {"pool_bytes": -PAGE}).encode(),
    json.dumps(GOOD | {"pool_bytes": (NR_PAGES + 1) * PAGE}).encode(),
    json.dumps(GOOD | {"pool_bytes": 1 << 70}).encode(),
    json.dumps({"tracks": True}).encode(),
    json.dumps(GOOD | {"holder": 0}).encode(),
    json.dumps(GOOD | {"holder": 1 << 62}).encode(),
    b'{"errno": "x", "text": 1}',
    b'{"errno": 99999}',
]


def test_an_answer_to_hello_that_is_none_is_eproto(false_ksmd, caller, pool):
    for answer in GARBAGE:
        caller.start(_advise)
        with false_ksmd.accept() as control:
            assert _receive(control) == {"hello": wire.VERSION, "domain": ""}
            socket.send_fds(control, [answer], [pool, pool])
            number, text = caller.finish()
        assert number == errno.EPROTO
        assert "no ksmd" in text


def test_wrong_descriptors_with_the_answer_are_eproto_and_closed(false_ksmd, caller, pool):
    for nr_fds in (0, 1, 3, 5):
        caller.start(_advise)
        with false_ksmd.accept() as control:
            _receive(control)
            wire.send_control(control, GOOD, (pool,) * nr_fds)
            number, _ = caller.finish()
        assert number == errno.EPROTO


SPACE_ANSWERS = [b"junk", b"[]", b'{"errno": "x"}', b'{"errno": 4294967296}']


def test_an_answer_to_a_space_that_is_none_is_eproto(false_ksmd, caller, pool):
    for answer in SPACE_ANSWERS:
        caller.start(_advise)
        with false_ksmd.accept() as control, _greeted(control, pool):
            assert "space" in _receive(control)
            control.send(answer)
            number, _ = caller.finish()
        assert number == errno.EPROTO


def test_a_refusal_is_told_with_its_errno_and_text(false_ksmd, caller):
    caller.start(_advise)
    with false_ksmd.accept() as control:
        _receive(control)
        wire.send_control(control, {"errno": errno.EMFILE, "text": "no more of you"})
        assert caller.finish() == (errno.EMFILE, f"[Errno {errno.EMFILE}] ksmd refuses: no more of you")


@pytest.mark.parametrize("is_greeted", [False, True])
def test_one_that_hangs_up_is_not_running(false_ksmd, caller, pool, is_greeted):
    caller.start(_advise)
    with false_ksmd.accept() as control:
        if is_greeted:
            with _greeted(control, pool):
                _receive(control)
        else:
            _receive(control)
    assert caller.finish()[0] == errno.ENOTCONN
