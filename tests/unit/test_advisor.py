"""The scan-time advisor, step by step against vectors computed with the kernel's arithmetic."""

import pytest

from ksmemu.ksmd.advisor import Advisor, Limits

DEFAULT = Limits(target_scan_time=200, max_cpu=70, max_pages_to_scan=30000)
STEPS = [
    (200, 20000, 500),
    (200, 20000, 500),
    (400, 40000, 950),
    (400, 40000, 1824),
    (100, 10000, 1820),
    (50, 25000, 360),  # below advisor_min_pages_to_scan, which is no lower limit
    (1, 10, 3600),
    (1000, 100000, 25200),
]
STEADY = [(200, 10000, pages) for pages in (1000, 2000, 4000, 8000, 16000, 30000, 30000)]


@pytest.mark.parametrize("steps", [STEPS, STEADY], ids=["changing", "steady"])
def test_pages_to_scan_follows_the_kernels_vectors(steps):
    advisor, pages = Advisor(), 500
    for seconds, cpu_millisecs, expected in steps:
        advisor, pages = advisor.advise(DEFAULT, pages, seconds * 1000, cpu_millisecs)
        assert pages == expected


def test_a_scan_of_no_time_counts_as_a_second():
    assert Advisor().advise(DEFAULT, 500, 0, 0) == Advisor().advise(DEFAULT, 500, 1000, 0)
