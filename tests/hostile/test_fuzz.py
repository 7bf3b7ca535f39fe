"""Both sockets of ksmd under random messages, and messages that are nearly right."""

import contextlib
import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksmemu import wire
from ksmemu.wire import ReportKind
from tests.support.fakes import PAGE, FakeWorker, connect

NR_PAGES = 31
BOUNDED = settings(
    max_examples=211,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hello", "space", "start", "size", "end", "node"]), inner, max_size=3
        )
    ),
    max_leaves=7,
)
numbers = st.sampled_from([0, 1, 2, 3, 5, NR_PAGES - 1, NR_PAGES, 4096, 1 << 31, 1 << 32, (1 << 64) - 1])
spans = st.lists(st.tuples(numbers, numbers, st.sampled_from([0, 11, -1, 12])), max_size=3)
reports = st.tuples(
    st.sampled_from([*ReportKind, 0, 9]),
    st.integers(0, 7),
    spans,
    st.integers(0, 40),
    st.none() | st.integers(0, 9),
)


@pytest.fixture
def pagemap():
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    yield fd
    os.close(fd)


def _drop_answers(control):
    control.settimeout(0)
    message = b"any"
    with contextlib.suppress(OSError):
        while message:
            message, fds, _, _ = socket.recv_fds(control, wire.CONTROL_MAX_BYTES, wire.CONTROL_MAX_FDS)
            for fd in fds:
                os.close(fd)


def test_ksmd_survives_any_control_message(ksmd, honest, pagemap):
    @BOUNDED
    @given(bodies=st.lists(st.binary(max_size=99) | values, min_size=1, max_size=3), nr_fds=st.integers(0, 5))
    def say(bodies, nr_fds):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [theirs.fileno(), pagemap, pagemap, pagemap, pagemap][:nr_fds]
        with connect(ksmd.directory) as control, ours, theirs, contextlib.suppress(OSError):
            for body in bodies:
                if isinstance(body, bytes):
                    socket.send_fds(control, [body], fds)
                else:
                    wire.send_control(control, body, tuple(fds))
            _drop_answers(control)

    say()
    honest.assert_is_served()


def test_ksmd_survives_any_request_of_a_worker(ksmd, honest):
    own = os.memfd_create("fake")
    os.truncate(own, NR_PAGES * PAGE)

    @BOUNDED
    @given(body=st.fixed_dictionaries({"space": values}) | values, nr_fds=st.integers(0, 3))
    def ask(body, nr_fds):
        with FakeWorker(ksmd.directory) as fake, contextlib.suppress(OSError):
            wire.send_control(fake.control, body, (own,) * nr_fds)
            _drop_answers(fake.control)

    ask()
    os.close(own)
    honest.assert_is_served()


def test_ksmd_survives_any_report(ksmd, honest):
    """Its own space is the third or a later one: 1 and 2 are the honest worker's."""

    @BOUNDED
    @given(messages=st.lists(st.binary(max_size=99) | reports, min_size=1, max_size=7))
    def say(messages):
        with FakeWorker(ksmd.directory) as fake, contextlib.suppress(OSError):
            own = fake.own(bytes(PAGE) * NR_PAGES)
            space = fake.register(own, NR_PAGES)
            os.close(own)
            fake.report(ReportKind.ADVISED, space, (0, NR_PAGES, 0))
            for message in messages:
                if isinstance(message, bytes):
                    fake.order.send(message)
                    continue
                kind, which, parts, order_id, nr_spans = message
                fake.report(kind, which if which < 3 else space, *parts, order_id=order_id, nr_spans=nr_spans)

    say()
    honest.assert_is_served()
