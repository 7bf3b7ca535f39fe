"""A ksmd that orders what it likes: the worker lives, and every byte is as it wrote it last.

Only the pool is believed: whoever may write frames can change what is merged.
"""

import contextlib
import os
import socket

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ksmemu
from ksmemu import wire
from ksmemu.wire import OrderKind, ReportKind
from tests.support.fakes import PAGE, FalseKsmd

NR_PAGES = 37
NR_FRAMES = 67
SPACE = 1
DATA = [os.urandom(PAGE) if page % 5 else bytes(PAGE) for page in range(NR_PAGES)]
BOUNDED = settings(
    max_examples=101,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

pages = st.integers(0, NR_PAGES - 1)
wrong = st.sampled_from([NR_PAGES, NR_FRAMES, 4096, 1 << 40, 1 << 52, (1 << 64) - 2])
right_runs = st.lists(
    st.tuples(pages, st.sampled_from(["same", "zero", "other"]), st.integers(1, 5), st.integers(0, 1)),
    min_size=1,
    max_size=7,
)
wrong_runs = st.lists(
    st.tuples(pages | wrong, st.integers(0, NR_FRAMES) | wrong, st.sampled_from([0, 1, 2, 40, 4096]), pages),
    max_size=3,
)
orders = st.tuples(
    st.sampled_from([*OrderKind] * 3 + [0, 4, 1 << 31]),
    st.sampled_from([SPACE] * 5 + [0, 2]),
    st.sampled_from([0] * 5 + [1, 1 << 31]),  # ahead of the epoch
    st.one_of(right_runs, right_runs, right_runs, wrong_runs),
)


class LyingKsmd(FalseKsmd):
    """Lets a worker join with one space; its frames hold what the pages of that hold, and other things."""

    def __init__(self, directory):
        super().__init__(directory)
        self.pool = os.memfd_create("pool")
        others = [os.urandom(PAGE) for _ in range(NR_FRAMES - NR_PAGES)]
        os.write(self.pool, b"".join([*DATA, *others]))
        os.truncate(self.pool, NR_FRAMES * PAGE)

    def close(self):
        os.close(self.pool)
        super().close()

    @contextlib.contextmanager
    def joined(self, victim, directory, *, secure=False):
        """Yield the order socket of a victim that has advised a new space, and its epoch."""
        victim.start(_open_space, directory)
        with self.accept() as control:
            _, (order, pagemap) = wire.receive_control(control)
            os.close(pagemap)
            answer = {"holder": 1, "pool_bytes": NR_FRAMES * PAGE, "tracks": True, "secure": secure}
            wire.send_control(control, answer, (self.pool, self.pool))
            _, (own,) = wire.receive_control(control)
            os.close(own)
            wire.send_control(control, {})
            with socket.socket(fileno=order) as order:
                order.settimeout(20.0)
                victim.finish()
                kind, space, _, epoch, _, _ = wire.unpack_report(order.recv(wire.REPORT_MAX_BYTES))
                assert (kind, space) == (ReportKind.ADVISED, SPACE)
                yield order, epoch
                victim.call(_close_space)  # before the agent looks for another ksmd


@pytest.fixture
def lying(tmp_path):
    lying = LyingKsmd(tmp_path / "lying")
    yield lying
    lying.close()


def _open_space(state, directory):
    state.space = ksmemu.AddressSpace(NR_PAGES * PAGE, instance=directory)
    state.space.mmap(state.space.size)
    state.data = bytearray(b"".join(DATA))
    state.space.write(state.space.start, state.data)
    state.space.madvise_all(ksmemu.MADV_MERGEABLE)


def _look_and_write(state, page):
    """Return whether all bytes are right; write one to a page."""
    is_right = state.space.read(state.space.start, state.space.size) == state.data
    state.data[page * PAGE + 7] ^= 1
    state.space.write(state.space.start + page * PAGE + 7, state.data[page * PAGE + 7 : page * PAGE + 8])
    return is_right


def _close_space(state):
    state.space.close()


def packed(order, epoch):
    """Return a message that gives an order; runs with a word for a frame are put into order and apart."""
    kind, space, ahead, runs = order
    if runs and isinstance(runs[0][1], str):
        runs = sorted(runs)
        ends = [run[0] for run in runs[1:]] + [NR_PAGES]
        runs = [
            (
                page,
                {"same": page, "zero": wire.FRAME_ZERO, "other": page + 29}[frame],
                min(nr, end - page),
                join,
            )
            for (page, frame, nr, join), end in zip(runs, ends, strict=True)
            if end > page
        ]
    column = np.array([tuple(run) for run in runs], dtype=wire.RUN)
    head = wire.ORDER.pack(kind, space, 97, (epoch + ahead) % (1 << 32), len(column))
    return head + column.tobytes()


def obey(order, message):
    """Let the agent have a message; return for how many pages it was done, or None when the agent hung up."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        order.send(message)
        if answer := order.recv(wire.REPORT_MAX_BYTES):
            spans = wire.unpack_report(answer)[-1]
            return int(spans["nr_pages"][spans["error"] == 0].sum())
    return None


@pytest.mark.parametrize("secure", [False, True])
def test_no_order_changes_a_byte(lying, start_worker, tmp_path, secure):
    victim, outcomes = start_worker(), []

    @BOUNDED
    @given(
        given_orders=st.lists(
            st.tuples(orders | st.binary(min_size=1, max_size=99), pages), min_size=1, max_size=9
        )
    )
    def order_about(given_orders):
        with lying.joined(victim, tmp_path / "lying", secure=secure) as (order, epoch):
            for one, page in given_orders:
                outcomes.append(obey(order, one if isinstance(one, bytes) else packed(one, epoch)))
                assert victim.call(_look_and_write, page)
            assert victim.call(_look_and_write, 0)

    order_about()
    assert {None, 0} < {*outcomes}, "some are no orders, some are refused, and some are obeyed"


@pytest.mark.parametrize("step", ["verify", None])
def test_it_would_be_noticed_without_verify(lying, start_worker, tmp_path, step):
    victim = start_worker(step)
    with lying.joined(victim, tmp_path / "lying") as (order, epoch):
        nr_merged = obey(order, packed((OrderKind.MERGE, SPACE, 0, [(3, "other", 2, 0)]), epoch))
        assert nr_merged == (2 if step else 0)
        assert victim.call(_look_and_write, 0) == (step is None)


def test_one_that_orders_and_hears_nothing_keeps_nobody_from_memory(lying, start_worker, tmp_path):
    """Orders and outcomes fill the sockets: the agent waits, and so does advice; reads and writes go on."""
    victim = start_worker()
    with lying.joined(victim, tmp_path / "lying") as (order, epoch):
        runs = [(page, "same", 1, 0) for page in range(0, NR_PAGES, 2)]
        message = packed((OrderKind.MERGE, SPACE, 0, runs), epoch)
        order.settimeout(0)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                order.send(message)
                sent += 1
        assert sent > 1
        assert victim.call(_look_and_write, 5)
        order.settimeout(20.0)
        for _ in range(sent):
            assert order.recv(wire.REPORT_MAX_BYTES)
        assert victim.call(_look_and_write, 5)
