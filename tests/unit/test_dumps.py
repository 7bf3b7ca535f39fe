"""Where the memory lies in a file, of each kind; and one clear word about each file that is not read."""

import random
import struct
import subprocess
import sys

import pytest

from tests.support import dumps
from tests.support.cores import ROOT
from workers.dumps import WrongFileError, parts_of

PAGE = 4096
LOW = random.Random(1).randbytes(17 * PAGE + 3333)
HIGH = random.Random(2).randbytes(23 * PAGE)
PARTS = [(0x1000, LOW), (0x1_0000_0000, HIGH)]


@pytest.fixture
def read(tmp_path):
    """Return the memory that is found in a file of these bytes: (address, bytes)."""

    def read(content):
        path = tmp_path / "dump"
        path.write_bytes(content)
        with path.open("rb", buffering=0) as file:
            return [(p.address, content[p.offset : p.offset + p.length]) for p in parts_of(file)]

    return read


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_an_elf_core_has_its_segments_by_address(read, byte_order):
    assert read(dumps.elf(PARTS[::-1], byte_order=byte_order)) == PARTS


def test_memory_that_is_mapped_twice_is_there_once(read):
    tail = (0x1_0000_0000 + 3 * PAGE, HIGH)
    assert read(dumps.elf([*PARTS, (0x1_0000_0000, HIGH), PARTS[0]])) == PARTS
    with pytest.raises(WrongFileError, match="twice"):
        read(dumps.elf([*PARTS, tail]))


def test_what_a_filter_left_out_is_passed_over(read):
    assert read(dumps.elf(PARTS, absent=[(0x8000_0000, 5 * PAGE)])) == PARTS


def test_lime_and_avml_1_have_a_header_before_each_range(read):
    assert read(dumps.lime(PARTS[::-1])) == PARTS


@pytest.mark.parametrize("content", [LOW, b"\x7fELF" + LOW, dumps.elf(PARTS, e_type=2), b"EMi", b"\x7fELF"])
def test_what_is_nothing_else_is_raw(read, content):
    assert read(content) == [(0, content)]


def test_the_sparse_memory_file_of_firecracker_is_raw(tmp_path):
    path = tmp_path / "mem"
    with path.open("wb") as file:
        file.truncate(101 * PAGE)
    with path.open("rb", buffering=0) as file:
        assert parts_of(file) == [(0, 0, 101 * PAGE)]


WRONG = {
    "is empty": b"",
    "version 2": dumps.lime(PARTS, magic=b"AVML", version=2),
    "LiME of version 3": dumps.lime(PARTS, version=3),
    "no LiME header at byte 72997": dumps.lime(PARTS).replace(b"EMiL", b"????").replace(b"????", b"EMiL", 1),
    "header at byte 72997 is cut": dumps.lime(PARTS)[: 72997 + 31],
    "the memory at 0x100000000 are missing": dumps.lime(PARTS)[:-1],
    "memory from 0x2000 to 0x1000": b"EMiL" + struct.pack("<IQQ8x", 1, 0x2000, 0x1000),
    "the memory at 0x3000 twice": dumps.lime([(0x1000, LOW), (0x3000, HIGH)]),
    "0x100000000 are missing": dumps.elf(PARTS)[:-7],
    "program headers are not there": dumps.elf(PARTS)[: 64 + 3],
    "ELF headers cannot be read": dumps.elf(PARTS)[:20],
    "compressed kdump": b"makedumpfile\0\0\0\0" + bytes(PAGE),
    "kdump: dump it without": b"KDUMP   " + bytes(PAGE),
    "Windows": b"PAGEDU64" + bytes(PAGE),
    "state of a Firecracker snapshot": struct.pack("<Q", 0x0710_1984_8664_0000) + bytes(PAGE),
    "mem_file_path": struct.pack("<Q", 0x0710_1984_AAAA_0000) + bytes(PAGE),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_read_says_why(read, text):
    with pytest.raises(WrongFileError, match=text) as error:
        read(WRONG[text])
    assert "\n" not in str(error.value)


def test_whatever_a_core_says_is_no_traceback(read):
    core = dumps.elf([(0x1000, b"x" * 77), (0x9000, b"y" * 999)])
    source = random.Random(7)
    for _ in range(499):
        spoilt = bytearray(core[: source.randrange(len(core) + 1)] if source.random() < 0.3 else core)
        for _ in range(source.randrange(1, 4)):
            if len(spoilt) > 4:
                spoilt[source.randrange(4, min(len(spoilt), 64 + 3 * 56))] = source.randrange(256)
        try:
            parts = read(bytes(spoilt))
        except WrongFileError:
            continue
        assert all(len(content) for _, content in parts)


def test_without_the_extra_it_says_which_one_is_missing(tmp_path):
    path = tmp_path / "core"
    path.write_bytes(dumps.elf(PARTS))
    program = (
        "import sys; sys.modules['elftools.common.exceptions'] = None\n"
        "from workers.dumps import parts_of\n"
        f"parts_of(open({str(path)!r}, 'rb', buffering=0))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "pip install 'ksmemu[dump]'" in ran.stderr.splitlines()[-1]
