"""The kernel's KSM is as it was before, however a test ends, and has one user at a time."""

import signal

import pytest

from ksmemu.bench.kernel_ksm import KernelKsm, tunables
from tests.support import anonymous
from tests.support.processes import Worker
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root
OTHERS = {"max_page_sharing": 17, "pages_to_scan": 1009, "use_zero_pages": 1, "run": 1}


def change_everything(state):
    state.ksm = KernelKsm(**OTHERS).__enter__()
    state.ksm.write("advisor_mode", "scan-time")
    anonymous.open_space(state, 7)
    anonymous.put(state, 0, [1] * 7)
    state.ksm.wait_full_scans(3)
    return state.ksm.read("pages_shared")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_test_that_is_killed_leaves_ksm_as_it_was(number):
    before = tunables()
    with Worker() as one:
        assert one.call(change_everything) == 1
        assert tunables() != before
        one.kill(number)
        wait_until(lambda: tunables() == before, what="every tunable as before")


def test_a_test_that_fails_leaves_ksm_as_it_was():
    before = tunables()
    with pytest.raises(pytest.fail.Exception, match="it failed"), KernelKsm(**OTHERS):
        pytest.fail("it failed" if tunables() != before else "nothing was changed", pytrace=False)
    assert tunables() == before


def test_a_value_that_the_kernel_refuses_leaves_ksm_as_it_was():
    before = tunables()
    with pytest.raises(OSError, match="Invalid argument"), KernelKsm(use_zero_pages=1, max_page_sharing=1):
        pass
    assert tunables() == before


def test_nobody_else_gets_it():
    with KernelKsm(), pytest.raises(BlockingIOError), KernelKsm():
        pass
