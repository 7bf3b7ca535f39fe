import pytest

from tests.support.fakes import Honest
from tests.support.processes import Worker


@pytest.fixture
def honest(ksmd, start_worker):
    """A worker that is served and has merged before the test begins, and is served when it has ended."""
    yield from _is_served(Honest(ksmd, start_worker()))


@pytest.fixture(scope="module")
def lasting_worker(lasting_ksmd):
    with Worker(lasting_ksmd.directory) as one:
        yield Honest(lasting_ksmd, one)


@pytest.fixture
def lasting(lasting_worker):
    """The same one for all tests of a module, which names it `honest`."""
    yield from _is_served(lasting_worker)


def _is_served(honest):
    honest.assert_is_served()
    yield honest
    honest.assert_is_served()
