"""`fills_only`: nothing but zeros and 0xff is merged."""

import pytest

from ksmemu.control.reasons import Reason
from tests.support import procmaps
from tests.support.explained import assert_adds_up, reasons
from tests.support.pages import content
from tests.support.procmaps import PAGE

FILLS = [bytes(PAGE), b"\xff" * PAGE]
NEARLY = [bytes(PAGE - 1) + b"\1", b"\xff" * (PAGE - 1) + b"\xfe", b"\x01" * PAGE, b"\x00\xff" * (PAGE // 2)]
OTHERS = [*NEARLY, content("one"), content("other"), content("third")]
PAGES = FILLS + OTHERS


def merge_twins(ksmd, memory, scans=3):
    twins = [memory(ksmd, len(PAGES)) for _ in range(2)]
    for twin in twins:
        for page, data in enumerate(PAGES):
            twin.write(page, data)
    ksmd.scan(scans)
    assert [[twin.read(page) for page in range(len(PAGES))] for twin in twins] == [PAGES, PAGES]
    return twins


def merged(twin):
    """Return the pages that show something else than the own object."""
    found = procmaps.mappings("self", twin.start, twin.end)
    return [(m.start - twin.start) // PAGE + i for m in found if "p" in m.perms for i in range(m.pages)]


@pytest.mark.parametrize("across", [0, 1])
def test_zeros_and_0xff_are_merged_and_nothing_else(start_stepped, memory, across):
    ksmd = start_stepped(fills_only=True, merge_across_nodes=across)
    twins = merge_twins(ksmd, memory)
    assert [merged(twin) for twin in twins] == [[0, 1], [0, 1]]
    assert ksmd.read("pages_sharing") == 2
    assert ksmd.read("pages_unshared") == 2 * len(OTHERS)
    assert reasons(ksmd, twins[0]) == [Reason.MERGED] * 2 + [Reason.NO_FILL] * len(OTHERS)
    assert_adds_up(ksmd)


def test_zeros_may_show_the_zero_page(start_stepped, memory):
    ksmd = start_stepped(fills_only=True, use_zero_pages=1)
    merge_twins(ksmd, memory)
    assert (ksmd.read("ksm_zero_pages"), ksmd.read("pages_shared")) == (2, 1)


def test_a_page_that_becomes_one_is_merged(start_stepped, memory):
    ksmd = start_stepped(fills_only=True)
    twins = merge_twins(ksmd, memory)
    twins[0].write(5, FILLS[1])
    ksmd.scan(3)
    assert ksmd.read("pages_sharing") == 3
    twins[0].write(1, content("one"))
    ksmd.scan(3)
    assert (merged(twins[0]), merged(twins[1])) == ([0, 5], [0, 1])


def test_it_would_be_noticed_if_others_were_merged(stepped, memory):
    """The control: so it is without the mode."""
    twins = merge_twins(stepped, memory)
    assert [merged(twin) for twin in twins] == [[*range(len(PAGES))]] * 2
