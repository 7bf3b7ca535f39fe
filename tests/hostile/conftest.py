import pytest

from tests.support.fakes import Honest


@pytest.fixture
def honest(ksmd, start_worker):
    """A worker that is served and has merged before the test begins."""
    honest = Honest(ksmd, start_worker())
    honest.assert_is_served()
    return honest
