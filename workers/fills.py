"""A worker whose memory is zeros and 0xff: zeros show the kernel's zero page, 0xff shares frames.

$ python -m workers.fills --zeros 512 --ones 256
ready 4117
holds
zeros 512 ones 256
"""

from __future__ import annotations

from ksmemu.cli.command import run
from ksmemu.units import PAGE_SIZE
from workers import base
from workers.base import Worker


@base.program
@base.pages_option(512, "--zeros", "Pages of zeros.")
@base.pages_option(256, "--ones", "Pages of 0xff.")
def main(worker: Worker, zeros: int, ones: int) -> None:
    """Hold pages of zeros, then pages of 0xff."""
    memory = worker.map(zeros + ones, "fills")
    memory.put(0, bytes(zeros * PAGE_SIZE))
    memory.put(zeros, b"\xff" * (ones * PAGE_SIZE))
    worker.holds |= {"zeros": zeros, "ones": ones}
    worker.obey()


if __name__ == "__main__":
    run(main, "fills")
