"""LTP ksm07: smart scan passes over a page that never merges in at least half of the full scans."""

from tests.support import crew
from tests.support.scanning import merge

YOUNG_SCANS = 3
"""None is skipped in these."""


def test_ksm07(ksmd, area):
    ksmd.write("smart_scan", 1)
    ksmd.write("pages_to_scan", 100)
    area(1).call(crew.put, 0, [1])
    merge(ksmd, YOUNG_SCANS)
    ksmd.write("run", 0)
    scans, skipped = ksmd.read("full_scans"), ksmd.read("pages_skipped")
    merge(ksmd, 11)
    ksmd.write("run", 0)
    assert ksmd.read("pages_skipped") - skipped >= (ksmd.read("full_scans") - scans) * 50 // 100
