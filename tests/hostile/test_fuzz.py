"""Both sockets of ksmd under random messages, and messages that are nearly right."""

import contextlib
import os
import random
import socket

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksmemu import wire
from ksmemu.ksmd import merge, takeover
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.pool import Pool
from ksmemu.wire import ReportKind
from tests.support.fakes import PAGE, FakeWorker, connect
from tests.support.lives import ALL_HEARD, Lives

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
values_of_spans = st.sampled_from([0, 1, 2, 255, (1 << 32) - 1])
spans = st.lists(st.tuples(numbers, numbers, st.sampled_from([0, 11, -1, 12]), values_of_spans), max_size=3)
reports = st.tuples(
    st.sampled_from([*ReportKind, 0, max(ReportKind) + 1]),
    st.integers(0, 7),
    spans,
    st.integers(0, 40),
    st.none() | st.integers(0, 9),
    st.sampled_from([0] * 5 + [1, 2, 3]),  # descriptors
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


@pytest.mark.parametrize("resumes", [False, True])
def test_ksmd_survives_any_report(ksmd, honest, resumes):
    """Its own space is the third or a later one: 1 and 2 are the honest worker's."""

    @BOUNDED
    @given(messages=st.lists(st.binary(max_size=99) | reports, min_size=1, max_size=7))
    def say(messages):
        with FakeWorker(ksmd.directory) as fake, contextlib.suppress(OSError):
            if resumes:
                fake.resume(ksmd.directory, 1)
            own = fake.own(bytes(PAGE) * NR_PAGES)
            space = fake.register(own, NR_PAGES)
            os.close(own)
            fake.report(ReportKind.ADVISED, space, (0, NR_PAGES, 0))
            for message in messages:
                _report_any(fake, space, message)

    say()
    honest.assert_is_served()


def _report_any(fake, space, message):
    if isinstance(message, bytes):
        fake.order.send(message)
        return
    kind, which, parts, order_id, nr_spans, nr_fds = message
    fds = [fake.own(bytes(PAGE) * NR_PAGES) for _ in range(nr_fds)]
    which = which if which < 3 else space
    try:
        fake.report(kind, which, *parts, order_id=order_id, nr_spans=nr_spans, fds=fds)
    finally:
        for fd in fds:
            os.close(fd)


# ---- the books in this process, with scans and outcomes in between; atheris goes on from here (make fuzz)


def live(lives, nr, words):
    for _ in range(nr):
        lives(words.randbytes(words.randrange(23, 307)))


@pytest.mark.parametrize("is_secure", [False, True])
def test_whatever_a_client_says_its_death_leaves_nothing_in_the_books(is_secure, show):
    seed = random.SystemRandom().randrange(1 << 32)
    show(f"lives with seed {seed}")
    with contextlib.closing(Lives(secure=is_secure)) as lives:
        live(lives, 149, random.Random(seed))
    never = {"RENEW"} if is_secure else set()
    assert lives.heard.keys() <= ALL_HEARD - never
    assert {"OUTCOME", "MAPPED", "RESUMED", "FORKED", "INHERITED"} <= lives.heard.keys()


def _spell_out_unchecked(slot, spans):
    pages = [np.arange(page, page + nr) for page, nr, _, _ in spans.tolist()]
    frames = [value + np.arange(nr) for _, nr, _, value in spans.tolist()]
    return np.concatenate([*pages, NOTHING]), np.concatenate([*frames, NOTHING])


NOTHING = np.empty(0, dtype=np.int64)
BREAKS = {
    "frames are not released": (Pool, "release", lambda *_: None),
    "orders of the dead do not end": (merge, "abandon", lambda *_: None),
    "nobody is heard about an ancestor": (MmSlot, "hear", lambda _: None),
    "pages that show something are not checked": (takeover, "spelled_out", _spell_out_unchecked),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_it_would_be_noticed_if(monkeypatch, broken):
    monkeypatch.setattr(*BREAKS[broken])
    with contextlib.closing(Lives()) as lives, pytest.raises((AssertionError, IndexError)):
        live(lives, 997, random.Random(broken))
