"""Garbage on the order socket of ksmd: that worker is cut off, everybody else goes on."""

import os

import pytest

from ksmemu import wire
from ksmemu.wire import OrderKind, ReportKind
from tests.support.fakes import PAGE, FakeWorker
from tests.support.waiting import over_and_over, wait_until

NR_PAGES = 29


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


@pytest.fixture
def honest(lasting):
    return lasting


@pytest.fixture
def fake(ksmd, honest):
    """A worker with one space, whose pages are in both halves the same; nobody obeys its orders."""
    fake = FakeWorker(ksmd.directory)
    half = os.urandom(NR_PAGES * PAGE)
    own = fake.own(half + half)
    fake.space = fake.register(own, 2 * NR_PAGES)
    yield fake
    fake.close()
    os.close(own)


HEAD = wire.REPORT.pack(ReportKind.ADVISED, 0, 0, 0, 1, 0)
MESSAGES = [
    b"\x00",
    os.urandom(997),
    os.urandom(wire.REPORT.size),
    HEAD[:-1],
    HEAD,
    HEAD + bytes(wire.SPAN.itemsize - 1),
    HEAD + bytes(2 * wire.SPAN.itemsize),
    HEAD + bytes(wire.REPORT_MAX_BYTES),
]


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_a_report_that_is_none_cuts_the_worker_off(fake, message):
    fake.order.send(message)
    assert fake.is_cut_off()


@pytest.mark.parametrize("kind", [0, max(ReportKind) + 1, 1 << 31])
def test_an_unknown_kind_of_report_cuts_the_worker_off(fake, kind):
    fake.report(kind, fake.space, (0, 1, 0))
    assert fake.is_cut_off()


@pytest.mark.parametrize("kind", [*ReportKind])
def test_the_space_of_another_worker_has_no_name(fake, honest, kind):
    """Numbers are the worker's own: the honest one's are 1 and 2."""
    fake.report(kind, 2, (0, honest.nr_pages, 0))
    assert fake.is_cut_off()
    assert honest.is_merged()


@pytest.mark.parametrize("kind", [ReportKind.MAPPED, ReportKind.RESUMED])
def test_who_has_not_resumed_cannot_say_what_is_mapped(fake, kind):
    fake.report(kind, fake.space, (0, 1, 0))
    assert fake.is_cut_off()


@pytest.mark.parametrize("node", [wire.MAX_NODES, (1 << 32) - 1])
def test_a_node_that_is_none_cuts_the_worker_off(fake, node):
    fake.report(ReportKind.BOUND, fake.space, (0, 1, 0, node))
    assert fake.is_cut_off()


def test_pages_beyond_the_space_cut_the_worker_off(fake):
    fake.report(ReportKind.ADVISED, fake.space, (2 * NR_PAGES - 1, 2, 0))
    assert fake.is_cut_off()


@pytest.mark.parametrize("page", [1 << 40, (1 << 64) - 1])
def test_pages_that_wrap_cut_the_worker_off(fake, page):
    fake.report(ReportKind.UNMAPPED, fake.space, (page, page, 0))
    assert fake.is_cut_off()


def test_the_outcome_of_no_order_cuts_the_worker_off(fake):
    fake.report(ReportKind.OUTCOME, fake.space, (0, 1, 0), order_id=4711)
    assert fake.is_cut_off()


def _await_merge(fake):
    """Advise, and return (id, number of pages) of the merge that is ordered."""
    fake.report(ReportKind.ADVISED, fake.space, (0, 2 * NR_PAGES, 0))
    kind, space, order_id, nr_pages = fake.receive_order()
    assert (kind, space, nr_pages) == (OrderKind.MERGE, fake.space, 2 * NR_PAGES)
    return order_id


@pytest.mark.parametrize("nr", [0, 1, 2 * NR_PAGES + 1, (1 << 64) - 1])
def test_an_outcome_of_other_pages_than_ordered_cuts_the_worker_off(fake, nr):
    order_id = _await_merge(fake)
    fake.report(ReportKind.OUTCOME, fake.space, (0, nr, 0), order_id=order_id)
    assert fake.is_cut_off()


def test_an_outcome_in_the_name_of_another_space_cuts_the_worker_off(fake):
    order_id = _await_merge(fake)
    fake.report(ReportKind.OUTCOME, 2, (0, 2 * NR_PAGES, 0), order_id=order_id)
    assert fake.is_cut_off()


def test_an_outcome_told_twice_cuts_the_worker_off(fake):
    order_id = _await_merge(fake)
    for _ in range(2):
        fake.report(ReportKind.OUTCOME, fake.space, (0, 2 * NR_PAGES, 0), order_id=order_id)
    assert fake.is_cut_off()


def test_a_worker_that_is_cut_off_with_an_order_under_way_delays_no_scan(ksmd, fake, honest):
    _await_merge(fake)
    fake.order.send(b"garbage")
    assert fake.is_cut_off()
    ksmd.wait_full_scans(97, timeout=10)
    ksmd.write("run", 2)
    ksmd.write("run", 1)


def test_a_worker_that_talks_instead_of_answering_stops_no_scan(ksmd, fake):
    _await_merge(fake)
    with over_and_over(lambda: fake.report(ReportKind.ADVISED, fake.space)):
        ksmd.wait_full_scans(7, timeout=20)
        ksmd.write("sleep_millisecs", 3)


def test_a_space_that_is_said_to_be_closed_gives_back_all_it_held(ksmd, fake, honest):
    """Also what the report does not name."""
    before = ksmd.read("pages_shared")
    order_id = _await_merge(fake)
    fake.report(ReportKind.OUTCOME, fake.space, (0, 2 * NR_PAGES, 0), order_id=order_id)
    wait_until(lambda: ksmd.read("pages_shared") == before + NR_PAGES)
    fake.report(ReportKind.CLOSED, fake.space)
    wait_until(lambda: ksmd.read("pages_shared") == before)


def test_an_own_object_that_shrinks_harms_nobody(ksmd, fake, honest):
    own = fake.own(os.urandom(PAGE) * (2 * NR_PAGES))
    space = fake.register(own, 2 * NR_PAGES, start=0x20000000)
    os.truncate(own, PAGE)
    fake.report(ReportKind.ADVISED, space, (0, 2 * NR_PAGES, 0))
    ksmd.wait_full_scans(5)
    os.truncate(own, 2 * NR_PAGES * PAGE)
    ksmd.wait_full_scans(5)
    os.truncate(own, 0)
    ksmd.wait_full_scans(5)
    os.close(own)


def test_a_false_success_shows_nobody_else_a_wrong_byte(ksmd, fake, honest):
    """It claims that everything is merged, then that everything is home: frames go, others keep theirs."""
    order_id = _await_merge(fake)
    fake.report(ReportKind.OUTCOME, fake.space, (0, 2 * NR_PAGES, 0), order_id=order_id)
    fake.report(ReportKind.UNADVISED, fake.space, (0, 2 * NR_PAGES, 0))
    honest.assert_is_served()
    assert honest.is_merged()
