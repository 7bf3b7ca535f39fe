"""Garbage on the control socket of ksmd: that client is refused, ksmd goes on and keeps nothing of it."""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from ksmemu import features, wire
from tests.support import procmaps
from tests.support.fakes import PAGE, FakeWorker, connect, is_refused, one_page_object
from tests.support.processes import Worker
from tests.support.waiting import wait_until

NR_CLIENTS = 17
ONE_PAGE = {"space": {"id": 1, "start": 0, "size": PAGE}}


def nr_held(pid):
    """Count what a ksmd holds open; its figures, and the maps of workers, it opens for a moment only."""
    paths = procmaps.descriptors(pid).values()
    return sum("/proc/" not in path or path.endswith("/pagemap") for path in paths)


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


@pytest.fixture
def honest(lasting):
    return lasting


@pytest.fixture(autouse=True)
def ksmd_keeps_nothing_of_it(ksmd, honest):
    """What ksmd holds open is the same before and after."""
    before = nr_held(ksmd.pid)
    yield
    wait_until(lambda: nr_held(ksmd.pid) == before, what="descriptors closed")
    wait_until(lambda: (ksmd.read("workers"), ksmd.read("spaces")) == (1, 2))


DEEP = b"[" * 4000
BODIES = [
    b"\x00",
    b"\xff\xfe\x00\xd8",
    os.urandom(997),
    b"null",
    b"[]",
    b"17",
    b'"hello"',
    b"{}",
    b'{"hello": 4711}',
    b'{"hello": "1"}',
    b'{"hello": {}}',
    b'{"hello": 1e999}',
    b'{"hello": ' + b"9" * 4000 + b"}",
    b'{"hello": 1',
    DEEP,
    b'{"hello": 1}' + b" " * wire.CONTROL_MAX_BYTES,
    b'{"x": "' + b"y" * 100_000 + b'"}',
    b'{"explain": 4711, "pid": null, "address": null}',
    b'{"explain": %d}' % wire.VERSION,
    b'{"explain": %d, "pid": "1", "address": null}' % wire.VERSION,
    b'{"explain": %d, "pid": null, "address": 1.5}' % wire.VERSION,
    b'{"explain": %d, "pid": null, "address": 4096}' % wire.VERSION,
    b'{"explain": %d, "pid": -1, "address": null}' % wire.VERSION,
    b'{"explain": %d, "pid": %d, "address": null}' % (wire.VERSION, 10**400),
]


def test_a_hello_that_is_none_is_refused(ksmd):
    for body in BODIES:
        with connect(ksmd.directory) as control:
            control.send(body)
            assert is_refused(control), body[:99]


def _file():
    return os.open("/proc/self/maps", os.O_RDONLY)


def _pagemap(pid="self"):
    return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)


def _socket():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    return ours.detach()


DESCRIPTORS = {
    "none": (),
    "one": (_socket,),
    "a file for a socket": (_file, _pagemap),
    "another file for the pagemap": (_socket, _file),
    "two sockets": (_socket, _socket),
    "the wrong way round": (_pagemap, _socket),
    "three": (_socket, _pagemap, _file),
    "as many as fit": (_socket,) * 4,
    "too many": (_socket,) * 7,
    "far too many": (_socket,) * 253,
}


@pytest.mark.parametrize("makers", DESCRIPTORS.values(), ids=DESCRIPTORS)
def test_a_hello_with_wrong_descriptors_is_refused(ksmd, makers):
    _say_hello_with(ksmd.directory, [make() for make in makers])


def test_the_pagemap_of_another_process_is_refused(ksmd, honest):
    _say_hello_with(ksmd.directory, [_socket(), _pagemap(honest.pid)])


def test_a_file_that_looks_like_the_pagemap_by_its_path_is_refused(ksmd):
    """In a file system of the client's own, which need never answer; from outside it has no other path."""
    with Worker(prefix=features.private_mounts()) as liar:
        liar.call(_pass_a_false_pagemap, ksmd.directory)


def _pass_a_false_pagemap(state, directory):
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as place:
        assert libc.mount(b"none", place.encode(), b"tmpfs", 0, None) == 0
        false = Path(place, "proc", str(os.getpid()), "pagemap")
        false.parent.mkdir(parents=True)
        false.write_bytes(bytes(PAGE))
        pagemap = os.open(false, os.O_RDONLY)
        assert libc.umount2(place.encode(), 2) == 0  # MNT_DETACH
    assert Path(f"/proc/self/fd/{pagemap}").readlink() == Path(f"/proc/{os.getpid()}/pagemap")
    _say_hello_with(directory, [_socket(), pagemap])


def _say_hello_with(directory, fds):
    with connect(directory) as control:
        wire.send_control(control, {"hello": wire.VERSION}, tuple(fds))
        assert is_refused(control)
    for fd in fds:
        os.close(fd)


def test_own_objects_and_spaces_that_are_none_are_refused(ksmd, start_worker):
    """Asked by a process that ends: a worker that was cut off is known until it is dead."""
    liar = start_worker()
    liar.call(_register_wrong_spaces, ksmd.directory, SPACES)
    liar.call(_register_wrong_objects, ksmd.directory)
    liar.kill()


SPACES = [
    {},
    {"space": None},
    {"space": []},
    {"space": {"id": 1, "start": 0}},
    {"space": {"start": 0, "size": PAGE}},
    {"space": {"id": -1, "start": 0, "size": PAGE}},
    {"space": {"id": 1 << 32, "start": 0, "size": PAGE}},
    {"space": {"id": 1, "start": "0", "size": PAGE}},
    {"space": {"id": 1, "start": 0, "size": 1.5}},
    {"space": {"id": 1, "start": 0, "size": 0}},
    {"space": {"id": 1, "start": 0, "size": -PAGE}},
    {"space": {"id": 1, "start": -PAGE, "size": PAGE}},
    {"space": {"id": 1, "start": 1, "size": PAGE}},
    {"space": {"id": 1, "start": 0, "size": PAGE + 1}},
    {"space": {"id": 1, "start": 0, "size": 2 * PAGE}},
    {"space": {"id": 1, "start": 1 << 47, "size": PAGE}},
    {"space": {"id": 1, "start": 0, "size": 1 << 62}},
    {"space": {"id": 1, "start": 10**400, "size": 10**400}},
]


def _register_wrong_spaces(state, directory, bodies):
    for body in bodies:
        with FakeWorker(directory) as fake:
            own = one_page_object()
            wire.send_control(fake.control, body, (own,))
            assert is_refused(fake.control), body
            os.close(own)


def _register_wrong_objects(state, directory):
    pipe, _ = os.pipe()
    again = f"/proc/self/fd/{one_page_object()}"
    opened = [
        os.open(path, flags)
        for path, flags in (
            ("/", os.O_RDONLY),
            ("/dev/zero", os.O_RDONLY),
            (__file__, os.O_RDONLY),  # a file system that may not answer
            (again, os.O_WRONLY),
            (again, os.O_PATH),
        )
    ]
    for fds in ((), (pipe,), (pipe, pipe), *((fd,) for fd in opened)):
        with FakeWorker(directory) as fake:
            wire.send_control(fake.control, ONE_PAGE, fds)
            assert is_refused(fake.control), fds


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_an_order_socket_that_nobody_is_connected_to_harms_nobody(ksmd, start_worker, family, kind):
    lonely = start_worker()
    lonely.call(_join_with_a_lonely_socket, ksmd.directory, family, kind)
    lonely.kill()


def _join_with_a_lonely_socket(state, directory, family, kind):
    with connect(directory) as control, socket.socket(family, kind) as lonely:
        wire.send_control(control, {"hello": wire.VERSION}, (lonely.fileno(), _pagemap()))
        wire.receive_control(control)
        with contextlib.suppress(ConnectionError):
            wire.send_control(control, ONE_PAGE, (one_page_object(),))
            control.recv(wire.CONTROL_MAX_BYTES)


def test_a_client_that_says_nothing_delays_nobody(ksmd, honest):
    with connect(ksmd.directory), connect(ksmd.directory):
        honest.assert_is_served()


def test_clients_that_connect_and_die_leave_nothing(ksmd, start_worker, honest):
    """Some before the hello, some before its answer, some before that of a space."""
    dying = [start_worker() for _ in range(3)]
    for client in dying:
        client.start(_connect_often_and_die, ksmd.directory)
    for client in dying:
        client.process.wait(30)
    honest.assert_is_served()


def _connect_often_and_die(state, directory):
    pagemap = _pagemap()
    for number in range(NR_CLIENTS):
        with connect(directory) as control, contextlib.suppress(BrokenPipeError):
            order = _socket()
            if number % 3:
                wire.send_control(control, {"hello": wire.VERSION}, (order, pagemap))
            if number % 3 == 2:
                wire.send_control(control, ONE_PAGE, (one_page_object(),))
            os.close(order)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_client_that_never_reads_its_answers_holds_up_nobody(ksmd, start_worker, honest):
    flooding = start_worker()
    flooding.call(_register_without_reading, ksmd.directory)
    honest.assert_is_served()
    flooding.kill()


def _register_without_reading(state, directory):
    state.fake = FakeWorker(directory)
    state.fake.control.settimeout(1)
    own = one_page_object()
    with contextlib.suppress(OSError):
        for _ in range(1009):
            wire.send_control(state.fake.control, ONE_PAGE, (own,))


@pytest.mark.parametrize("nr_spaces", [0, 7])
def test_when_ksmd_has_no_descriptor_left_it_serves_whom_it_has(ksmd, start_worker, honest, nr_spaces):
    limits = resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE, (67, limits[1]))
    greedy = start_worker()
    greedy.call(_connect_until_refused, ksmd.directory, nr_spaces)
    honest.assert_is_served()
    greedy.kill()
    resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE, limits)


def _connect_until_refused(state, directory, nr_spaces):
    """Join again and again, with so many spaces each time; without spaces, not even say hello."""
    state.fakes, own = [], one_page_object()
    with contextlib.suppress(OSError, EOFError, KeyError):
        for _ in range(67):
            join = FakeWorker if nr_spaces else connect
            state.fakes.append(join(directory, seconds=1))
            for _ in range(nr_spaces):
                state.fakes[-1].register(own, 1)


def test_a_refusal_is_one_object_with_an_errno_and_a_text(ksmd):
    with connect(ksmd.directory) as control:
        control.send(b"{}")
        answer = json.loads(control.recv(wire.CONTROL_MAX_BYTES))
    assert answer["errno"] == errno.EPROTO
    assert "hello" in answer["text"]
