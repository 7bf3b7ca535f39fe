"""Step 2: what is quiet is read once, and pages that differ in one bit are different."""

from pathlib import Path

from tests.support.pages import content
from tests.support.procmaps import PAGE


def test_pages_that_differ_in_one_bit_do_not_merge(stepped, memory):
    one = memory(stepped, 11)
    data = bytearray(content("base"))
    one.write(0, data)
    for page, place in enumerate((0, 1, 1777, PAGE - 1), start=1):
        other = bytearray(data)
        other[place] ^= 1
        one.write(page, other)
    stepped.scan(3)
    counters = stepped.counters()
    assert (counters["pages_shared"], counters["pages_unshared"]) == (0, 5)


def test_unique_pages_wait_until_a_partner_comes(stepped, memory):
    one, other = memory(stepped), memory(stepped)
    one.fill(range(23))
    stepped.scan(5)
    assert stepped.read("pages_unshared") == 23
    other.fill(range(0, 23, 2))
    stepped.scan(2)
    counters = stepped.counters()
    assert (counters["pages_unshared"], counters["pages_shared"]) == (11, 12)


def test_a_waiting_page_that_is_written_is_no_partner(stepped, memory):
    one, other = memory(stepped), memory(stepped)
    one.write(3, content("a"))
    stepped.scan(2)
    one.write(3, content("b"))
    other.write(5, content("a"))
    stepped.scan(3)
    assert stepped.read("pages_shared") == 0
    assert stepped.read("pages_unshared") == 2


def bytes_read(pid):
    """Return what a process has read by system calls so far, as the kernel counts it."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def test_a_page_that_is_not_written_is_never_read_again(stepped, memory):
    one = memory(stepped, 997)
    one.fill(range(997))
    stepped.scan()
    before = bytes_read(stepped.pid)
    stepped.scan()
    settled = bytes_read(stepped.pid)
    assert settled - before >= 997 * PAGE
    stepped.scan(7)
    assert bytes_read(stepped.pid) - settled < 100 * PAGE
    one.write(500, b"x")
    stepped.scan(2)
    assert bytes_read(stepped.pid) - settled < 100 * PAGE
    assert stepped.read("pages_unshared") == 997
