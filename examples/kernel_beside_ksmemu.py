"""The kernel's own KSM beside ksmemu: the same memory, the same counters.

It takes the kernel's KSM for a moment, if nobody else uses it, and puts its tunables back: needs root.

$ sudo python examples/kernel_beside_ksmemu.py
                       kernel   ksmemu
pages_shared              500      500
pages_sharing             500      500
pages_unshared              7        7
general_profit        1983552  1983552
"""

import mmap

import numpy as np

import ksmemu
from ksmemu.bench.kernel_ksm import KernelKsm


def ordinary(nr_pages):
    """Return memory as any process has it, which the kernel may merge."""
    memory = mmap.mmap(-1, nr_pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.madvise(mmap.MADV_MERGEABLE)
    return np.frombuffer(memory, "u8").reshape(nr_pages, 512)


def own(nr_pages):
    """Return memory which ksmemu may merge."""
    array = ksmemu.AddressSpace(nr_pages * 4096).ndarray((nr_pages, 512), "u8")
    ksmemu.madvise(array)
    return array


def figures(ksm, memory):
    """Fill 500 pages twice, and 7 that nothing equals; return the counters once all have been scanned."""
    twins, others = [memory(500), memory(500)], memory(7)
    for twin in twins:
        twin[:] = np.arange(500 * 512).reshape(500, 512)
    others[:] = np.arange(7 * 512).reshape(7, 512) + 10**9
    ksm.wait_full_scans(4)
    return ksm.counters()


with KernelKsm(run=1, pages_to_scan=10_000) as kernel, ksmemu.Ksmd(run=1, pages_to_scan=10_000) as ksmd:
    theirs, ours = figures(kernel, ordinary), figures(ksmd, own)
    print(f"{'':20} {'kernel':>8} {'ksmemu':>8}")
    for name in ("pages_shared", "pages_sharing", "pages_unshared", "general_profit"):
        print(f"{name:20} {theirs[name]:>8} {ours[name]:>8}")
