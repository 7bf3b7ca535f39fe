"""The rules of the cover letter, a test per sentence: what KSM may not cost, and not change."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import ksmemu
from tests.rfc2009.conftest import FILLED, NR_PAGES
from tests.support import crew, procmaps
from tests.support.cores import ROOT
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

KERNEL = [
    *sorted(path for path in Path("/sys/kernel/mm/ksm").glob("*") if path.stat().st_mode & 0o200),
    Path("/proc/sys/vm/max_map_count"),
    Path("/proc/sys/vm/overcommit_memory"),
    Path("/sys/kernel/mm/transparent_hugepage/enabled"),
    Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
]


def in_a_program(code):
    """Run code in a program of its own; return what it says."""
    text = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return json.loads(text)


# ---- 1: "no extra host memory while KSM is unused, even if it is compiled in" --------------------------

MAPS = """
import json, mmap, os, sys
import numpy
import ksmemu
from tests.support import procmaps
SIZE = 1009 * 4096
before = procmaps.smaps_rollup("self")["Anonymous"], procmaps.threads("self")
if sys.argv[1:] == []:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * SIZE)
else:
    space = ksmemu.AddressSpace(SIZE)
    memory = space.view(space.mmap(SIZE), SIZE)
    memory[:] = b"x" * SIZE
after = procmaps.smaps_rollup("self")["Anonymous"], procmaps.threads("self")
print(json.dumps([after[0] - before[0], after[1] - before[1], len(os.listdir("/proc/self/fd"))]))
"""


def cost_of(*how):
    """Return what 1009 written pages cost a process: bytes of memory, threads; and its descriptors."""
    command = [sys.executable, "-c", MAPS, *how]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def test_a_space_that_never_advised_costs_what_ordinary_memory_costs():
    memory, threads, descriptors = cost_of("AddressSpace")
    plain_memory, plain_threads, plain_descriptors = cost_of()
    assert (threads, descriptors) == (plain_threads, plain_descriptors)
    # Python objects of a few hundred bytes; not a table with an entry a page.
    assert memory - plain_memory < 64 * 1024


def test_the_scanner_is_not_loaded_into_a_worker():
    code = "import json, sys, ksmemu; print(json.dumps(sorted(sys.modules)))"
    loaded = in_a_program(code)
    assert "ksmemu.mm.address_space" in loaded
    unwanted = ("ksmemu.ksmd.", "ksmemu.cli", "mfusepy", "click", "multiprocess")
    assert [name for name in loaded if name.startswith(unwanted)] == []


def test_an_instance_that_nobody_joins_holds_no_memory_and_does_not_wake(ksm):
    ksm.write("run", 1)
    assert ksm.read("pool_bytes") == 0
    seen = [-1]

    def is_asleep():
        seen.append(context_switches(ksm.pid))
        return seen[-1] == seen[-2]

    wait_until(is_asleep, what="ksmd to have obeyed")
    for _ in range(997):
        ksm.read("run")
    assert context_switches(ksm.pid) == seen[-1]


def context_switches(pid, kind="voluntary_ctxt_switches"):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


# ---- 2: "no slowdown by notifiers that must block while KSM runs" ---------------------------------------


def write_merged_pages(state):
    """Write to each merged page once; return how often this thread slept meanwhile, and what it caught."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for page in range(NR_PAGES):
        state.space.write(state.start + page * PAGE, b"mine")
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


def caught_signals(_):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))


def test_no_writer_waits_for_a_notifier_or_a_lock(ksm, mm):
    """The first write to a merged page is a page fault of the kernel's, and nobody of ours is asked."""
    one, _ = mm(), mm()
    ksm.scan()
    assert ksm.counters() == (NR_PAGES, NR_PAGES)
    ksm.write("sleep", 2**32 - 1)  # asleep: nothing is frozen
    assert one.call(write_merged_pages) == 0
    assert one.call(crew.bytes_at, 0, NR_PAGES, 0) == [ord("m")] * NR_PAGES


def test_no_signal_is_caught_for_memorys_sake(mm):
    """Nobody handles faults: only merge_pid's signal is caught, which is ignored by default."""
    segv, bus, urg = (1 << (number - 1) for number in (11, 7, 23))
    caught = mm().call(caught_signals)
    assert not caught & (segv | bus)
    assert caught & urg


# ---- 3: "do not change the logic of memory management" -------------------------------------------------


def test_the_kernels_settings_are_what_they_were(ksm, mm):
    before = {path: path.read_text() for path in KERNEL if path.exists()}
    one, _ = mm(), mm()
    ksm.scan()
    one.call(write_merged_pages)
    ksm.scan()
    ksm.write("run", 0)
    assert {path: path.read_text() for path in KERNEL if path.exists()} == before


def address_and_neighbours(state):
    """Return where the space is, and what else is mapped, from files: the heap grows by itself."""
    start, size = state.start, state.space.size
    return start, [
        (m.start, m.end, m.perms)
        for m in procmaps.mappings("self")
        if not start <= m.start < start + size and m.path not in ("[heap]", "")
    ]


def test_addresses_and_all_other_memory_stay_as_they_are(ksm, mm):
    one, _ = mm(advised=False), mm()
    before = one.call(address_and_neighbours)
    one.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_SHAREABLE)
    ksm.scan()
    start, others = one.call(address_and_neighbours)
    assert start == before[0]
    assert set(before[1]) <= set(others)  # the agent maps the pool besides, read-only
    assert one.call(crew.differing, 0, FILLED) == []


def test_what_is_not_advised_is_not_touched(ksm, mm):
    """Ordinary memory of the very same space stays ordinary."""
    one, _ = mm(advised=False), mm()
    one.call(crew.advise, 0, 7, ksmemu.MADV_SHAREABLE)
    ksm.scan()
    start, end = one.call(lambda state: (state.start, state.start + state.space.size))
    ordinary = procmaps.mappings(one.pid, start + 7 * PAGE, end)
    assert [(m.inode, m.perms) for m in ordinary] == [(0, "rw-p")]


# ---- 4: "touch as little code outside ksm.c as possible" -----------------------------------------------

UNMODIFIED = """
import ksmemu
with ksmemu.AddressSpace(23 * 4096) as space:
    space.write(space.mmap(23 * 4096), b"".join(bytes([page]) * 4096 for page in range(1, 24)))
    print("ready", flush=True)
    input()
    assert space.read(space.start, 4096) == bytes([1]) * 4096
"""


def test_a_program_needs_no_change_to_be_merged(ksm):
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", UNMODIFIED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"KSMEMU_DIR": str(ksm.directory), "PATH": "/usr/bin"},
        )
        for _ in range(2)
    ]
    try:
        for program in programs:
            assert program.stdout.readline() == "ready\n"
            ksm.write("merge_pid", program.pid)
        ksm.write("run", 1)
        wait_until(lambda: ksm.counters() == (23, 23), what="two programs that sleep to be merged")
    finally:
        for program in programs:
            program.communicate("\n", timeout=20)
    assert [program.returncode for program in programs] == [0, 0]
