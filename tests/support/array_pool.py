"""A pool whose workers load the same file: prints pages_sharing, and whether each keeps what it writes.

python -m tests.support.array_pool fork|spawn|forkserver FILE plain|mergeable; a program of its own, since
multiprocess leaves a tracker and a server running.
"""

import contextlib
import sys

import multiprocess
import numpy as np

import ksmemu

NR_WORKERS = 3
kept = []
CONTEXTS = {"plain": contextlib.nullcontext, "mergeable": ksmemu.mergeable_arrays}


def load(file, context, barrier):
    with CONTEXTS[context]():
        kept.append(np.load(file))
    kept.append(np.load(file))
    barrier.wait(30)


def write(number):
    """Write one number, and return whether that and all others are now what they should be."""
    loaded, expected = kept
    loaded[number] = expected[number] = ~number
    return np.array_equal(loaded, expected)


def main(method, file, context):
    processes = multiprocess.get_context(method)
    barrier = processes.Barrier(NR_WORKERS + 1)
    with ksmemu.connect() as ksmd, processes.Pool(NR_WORKERS, load, (file, context, barrier)) as pool:
        barrier.wait(30)
        advised = ksmemu.array(1)  # with nothing advised, nothing is scanned
        ksmd.wait_full_scans(5)
        del advised
        sharing = ksmd.read("pages_sharing")
        is_right = all(pool.map(write, range(7), chunksize=1))
        sys.stdout.write(f"{sharing} {is_right}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
