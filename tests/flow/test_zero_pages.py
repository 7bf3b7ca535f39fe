"""use_zero_pages: zeros as pages like others, or as the kernel's zero page."""

from tests.support.procmaps import PAGE, mappings

ZEROS = bytes(PAGE)


def zeros(memory, ksmd, nr=97):
    one = memory(ksmd, nr)
    one.fill_equal(range(nr), ZEROS)
    return one


def test_0_counts_zeros_as_shared_pages(start_stepped, memory):
    stepped = start_stepped(use_zero_pages=0)
    zeros(memory, stepped)
    stepped.scan(2)
    counters = stepped.counters()
    assert (counters["pages_shared"], counters["pages_sharing"]) == (1, 96)
    assert counters["ksm_zero_pages"] == 0


def test_1_counts_zeros_as_zero_pages(start_stepped, memory):
    stepped = start_stepped(use_zero_pages=1)
    one = zeros(memory, stepped)
    stepped.scan(2)
    counters = stepped.counters()
    assert (counters["pages_shared"], counters["pages_sharing"]) == (0, 0)
    assert counters["ksm_zero_pages"] == 97
    assert one.space.blocks_bytes() == 0
    assert len(mappings("self", one.start, one.end)) == 1


def test_a_single_zero_page_needs_no_partner_with_1(start_stepped, memory):
    stepped = start_stepped(use_zero_pages=1)
    memory(stepped).write(7, ZEROS)
    stepped.scan(2)
    assert stepped.read("ksm_zero_pages") == 1


def test_a_written_zero_page_comes_home(start_stepped, memory):
    stepped = start_stepped(use_zero_pages=1)
    one = zeros(memory, stepped)
    stepped.scan(2)
    one.write(31, b"x")
    assert one.read(31) == b"x" + ZEROS[1:]
    stepped.scan()
    assert stepped.read("ksm_zero_pages") == 96
    assert one.space.blocks_bytes() == PAGE
    assert one.read(31) == b"x" + ZEROS[1:]
    assert one.read(30) == one.read(32) == ZEROS


def test_switching_keeps_what_is_merged(start_stepped, memory):
    stepped = start_stepped(use_zero_pages=1)
    zeros(memory, stepped, 23)
    stepped.scan(2)
    stepped.write("use_zero_pages", 0)
    zeros(memory, stepped, 19)
    stepped.scan(2)
    assert stepped.read("ksm_zero_pages") == 23
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (1, 18)
