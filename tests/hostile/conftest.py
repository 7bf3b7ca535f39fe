import pytest

from tests.support.fakes import Honest
from tests.support.processes import Worker


@pytest.fixture
def honest(ksmd, start_worker):
    """A worker that is served and has merged before the test begins."""
    honest = Honest(ksmd, start_worker())
    honest.assert_is_served()
    return honest


@pytest.fixture(scope="module")
def lasting(lasting_ksmd):
    """An honest worker whom a ksmd serves on after one test, and through the next."""
    with Worker(lasting_ksmd.directory) as one:
        yield Honest(lasting_ksmd, one)
