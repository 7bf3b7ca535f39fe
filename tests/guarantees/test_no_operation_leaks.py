"""Whatever is done again and again costs memory, mappings, descriptors and threads once, in worker and ksmd.

What is fast is done 10,000 times; KSMEMU_CALLS is how often the rest is done (`make leaks`: as often).
"""

import logging
import os

import pytest

from tests.conftest import AT_ONCE
from tests.support import leftovers, operations
from tests.support.processes import Worker

_log = logging.getLogger(__name__)
NR_FAST = 10_000
NR_SLOW = int(os.environ.get("KSMEMU_CALLS", "101"))
NR_SLOWEST = int(os.environ.get("KSMEMU_CALLS", "5"))
_SECONDS = 10_000.0
_ROUNDS = 9
MOST = {
    "descriptors": 0,
    "threads": 0,
    "mappings": 0,
    "bytes": 1 << 19,
    "objects": 47,
    "malloc bytes": 1 << 10,
}
"""What may come by itself, of objects less than one for every second call."""


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


@pytest.fixture(scope="module")
def worker(ksmd):
    with Worker() as worker:
        worker.call(operations.begin, ksmd.directory)
        yield worker
        worker.call(operations.end)


def leaks(ksmd, worker, operation, times):
    """Return what grows each time the operation is done so often, and by how much the last time.

    One round without growth is enough: caches fill for some rounds, and what leaks grows in every one.
    """
    found = {}
    worker.call(operations.repeat, operation, times // 10 + 1, timeout=_SECONDS)
    for round_ in range(_ROUNDS):
        before = held(ksmd, worker)
        worker.call(operations.repeat, operation, times, timeout=_SECONDS)
        after = held(ksmd, worker)
        grown = {name: after[name] - before[name] for name in after}
        found = {n: nr for n, nr in grown.items() if nr > MOST[n[1]] and (n in found or not round_)}
        if not found:
            break
        _log.info("round %d: %s", round_, found)
    return found


def held(ksmd, worker):
    """Return (process, kind) -> how much of it there is, once ksmd has heard of all that was closed."""
    ksmd.wait_full_scans(2)
    of = {"worker": worker.call(operations.held), "ksmd": leftovers.counts(ksmd.pid)}
    return {(who, what): nr for who, held in of.items() for what, nr in held.items()}


OPERATIONS = [
    pytest.param(operation, times, id=operation.__name__)
    for times, group in (
        (NR_FAST, operations.FAST), (NR_SLOW, operations.SLOW), (NR_SLOWEST, operations.SLOWEST),
    )
    for operation in group
]  # fmt: skip


@pytest.mark.parametrize(("operation", "times"), OPERATIONS)
def test_an_operation_leaks_nothing(ksmd, worker, operation, times):
    assert leaks(ksmd, worker, operation, times) == {}


def keep_an_object(state):
    state.kept.append(object())


def keep_a_descriptor(state):
    state.kept.append(os.open("/dev/null", os.O_RDONLY))


LEAKS = {keep_an_object: "objects", keep_a_descriptor: "descriptors"}


@pytest.mark.parametrize("operation", LEAKS, ids=lambda operation: operation.__name__)
def test_a_leak_of_the_worker_would_be_noticed(ksmd, operation):
    with Worker() as worker:
        worker.call(operations.begin, ksmd.directory)
        assert ("worker", LEAKS[operation]) in leaks(ksmd, worker, operation, 101)


def test_a_leak_of_ksmd_would_be_noticed(start_ksmd):
    ksmd = start_ksmd(broken="hoard", module="tests.support.ksmd_main", **AT_ONCE)
    with Worker() as worker:
        worker.call(operations.begin, ksmd.directory)
        found = leaks(ksmd, worker, operations.advise_a_new_space, 23)
    assert {("ksmd", "descriptors"), ("ksmd", "bytes")} <= found.keys()
