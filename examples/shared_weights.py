"""Eight workers load the same weights, and the machine holds them once; figures in MiB.

$ python examples/shared_weights.py 256
started      Pss    45   shared   176   used  1266
loaded       Pss  2114   shared  2228   used  3483
merged       Pss   322   shared   436   used  2194
pages_shared 65536, pages_sharing 458752
"""

import multiprocessing as mp
import re
import sys
import tempfile
from pathlib import Path
from threading import Barrier

import numpy as np

import ksmemu

kept: list[np.ndarray] = []


def load(path: str, barrier: Barrier) -> None:
    """Begin a worker: load the weights once all have started, and keep them."""
    barrier.wait()
    with ksmemu.mergeable_arrays():
        kept.append(np.load(path))
    barrier.wait()


def look(state: str) -> None:
    """Print in MiB what the workers have by Pss, and what `free` shows: shared, and total less available."""
    rollups = [Path(f"/proc/{w.pid}/smaps_rollup").read_text() for w in mp.active_children()]
    pss = [int(re.findall(r"\nPss: +(\d+)", rollup)[0]) for rollup in rollups]
    free = dict(re.findall(r"(\w+): +(\d+)", Path("/proc/meminfo").read_text()))
    used = int(free["MemTotal"]) - int(free["MemAvailable"])
    print(f"{state:12} Pss {sum(pss) >> 10:5}   shared {int(free['Shmem']) >> 10:5}   used {used >> 10:5}")


def main(mib: int) -> None:
    """Look at a pool of workers before they load, when they have loaded, and when all is merged."""
    barrier = mp.Barrier(9)
    with ksmemu.Ksmd(pages_to_scan=1_000_000) as ksmd, tempfile.NamedTemporaryFile() as file:
        np.save(file, np.random.default_rng(1).permutation(mib << 17))
        file.flush()
        with mp.Pool(8, load, (file.name, barrier)):
            look("started")
            barrier.wait()
            barrier.wait()
            look("loaded")
            ksmd.write("run", 1)
            ksmd.wait_full_scans(3)
            look("merged")
            print(f"pages_shared {ksmd.read('pages_shared')}, pages_sharing {ksmd.read('pages_sharing')}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
