"""`ksmemu demo`: four processes share what they have in common, write to it, and get it all back.

load ▶ merge ▶ write (copies) ▶ check every byte ▶ unmerge ▶ check again
"""

from __future__ import annotations

import collections
import errno
import hashlib
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from ksmemu.cli.demo_memory import Memory, measure
from ksmemu.cli.demo_worker import own_data, work, write_marks
from ksmemu.cli.options import json_option
from ksmemu.cli.output import echo_json, progress, size, waiting
from ksmemu.control.ksmd import Ksmd
from ksmemu.crew import Crew
from ksmemu.errors import KsmError
from ksmemu.units import PAGE_SIZE

NR_WORKERS = 4
FILES_BYTES = 60 << 20
_DEADLINE_SECONDS = 20.0


@click.command(short_help="Merge the memory of four processes, and unmerge it.")
@json_option
def demo(as_json: bool) -> int:  # noqa: FBT001 (click passes it by name)
    """Merge the memory of four processes, write to it, unmerge it; on real files, in seconds."""
    files = _choose_files()
    with (
        tempfile.TemporaryDirectory(prefix="ksmemu-demo-") as directory,
        Ksmd(Path(directory, "instance"), pages_to_scan=50_000, sleep_millisecs=5) as ksmd,
        Crew(work, [(str(ksmd.directory), rank, files) for rank in range(NR_WORKERS)]) as crew,
    ):
        story = _Story(ksmd, crew, files, quiet=as_json)
        story.load()
        story.merge()
        story.write()
        story.check_bytes("after the writes")
        story.unmerge()
        story.check_bytes("after unmerging")
    if as_json:
        echo_json(story.figures | {"ok": story.ok})
    story.say("all is as it was" if story.ok else "NOT all is as it was")
    return 0 if story.ok else 1


def _choose_files() -> list[Path]:
    """Return the largest files that any machine with this program has, FILES_BYTES at most."""
    library = Path(np.__file__).parents[1]
    folders = [Path(sysconfig.get_path("stdlib")), library / "numpy", library / "numpy.libs"]
    found = {path.resolve() for folder in folders for path in folder.rglob("*") if path.is_file()}
    chosen: list[Path] = []
    room = FILES_BYTES
    for path in sorted(found, key=lambda path: (-path.stat().st_size, path)):
        if PAGE_SIZE < path.stat().st_size <= room:
            chosen.append(path)
            room -= path.stat().st_size
        if room < FILES_BYTES // 20:
            break
    return chosen


class _Story:
    """What happens, told as it happens; `figures` holds the same for a program."""

    def __init__(self, ksmd: Ksmd, crew: Crew, files: Sequence[Path], *, quiet: bool) -> None:
        self.figures: dict[str, Any] = {"memory": {}}
        self.ok = True
        self._ksmd, self._crew, self._quiet = ksmd, crew, quiet
        self._files = [path.read_bytes() for path in files]

    def say(self, text: str) -> None:
        """Tell a person."""
        if not self._quiet:
            click.echo(text)

    def load(self) -> None:
        """Wait until every worker has filled its memory."""
        files_bytes = sum(map(len, self._files))
        self.say(
            f"{NR_WORKERS} workers, each with the same {len(self._files)} files"
            f" ({size(files_bytes)}) and data of its own\n"
        )
        with waiting("loading"):
            self._crew.answers()
        columns = ("own objects", "pool", "private", "IN USE", "Shmem+Anon")
        self.say(" " * 11 + "".join(f"{name:>13}" for name in columns))
        self._loaded = self._measure("loaded")

    def merge(self) -> None:
        """Scan until nothing more merges."""
        start = time.monotonic()
        self._ksmd.write("run", 1)
        seconds = self._converge(start, most := self._mergeable_pages())
        shared, sharing = self._ksmd.read("pages_shared"), self._ksmd.read("pages_sharing")
        self._merged = self._measure("merged")
        self.say(f"  in {seconds:.2f} s: pages_shared {shared}, pages_sharing {sharing} of {most}")
        saved = self._loaded.used - self._merged.used
        self.say(f"  saved {size(saved)}, {saved / self._loaded.used:.0%} of the memory in use")
        self.ok &= saved > 0
        self.figures |= {
            "pages_shared": shared,
            "ladder_frames": self._ksmd.read("ladder_frames"),
            "pages_sharing": sharing,
            "pages_mergeable": most,
            "seconds_to_converge": round(seconds, 3),
            "saved_bytes": saved,
        }

    def write(self) -> None:
        """Write to merged pages: first without ksmd, to see the copies, then let it find them."""
        before, showing = self._ksmd.read("pages_sharing"), self._pages_showing_frames()
        self._ksmd.write("run", 0)
        written = sum(self._crew.ask("write"))
        copies = (self._measure("written").private - self._merged.private) // PAGE_SIZE
        self.say(f"  {written} writes to merged pages: {copies} private copies, made by the kernel")
        self._ksmd.write("run", 1)
        start = time.monotonic()
        while self._pages_showing_frames() > showing - written:
            self._check_deadline(start, "bringing home what was written")
        after = self._ksmd.read("pages_sharing")
        self._measure("rehomed")
        self.say(f"  pages_sharing fell from {before} to {after}; the copies are ordinary pages")
        self.ok &= abs(copies - written) < written / 20 and after < before
        self.figures |= {"pages_written": written, "copies": copies, "pages_sharing_after": after}

    def unmerge(self) -> None:
        """Give every worker all of its memory back."""
        start = time.monotonic()
        with waiting("unmerging"):
            self._ksmd.write("run", 2)
            while self._ksmd.read("pages_shared") or self._ksmd.read("pool_bytes"):
                self._check_deadline(start, "unmerging")
        seconds = time.monotonic() - start
        memory = self._measure("unmerged")
        self.say(f"  in {seconds:.2f} s: pages_sharing {self._ksmd.read('pages_sharing')}")
        self.ok &= memory.own == self._loaded.own and memory.pool == 0
        self.figures["seconds_to_unmerge"] = round(seconds, 3)

    def check_bytes(self, when: str) -> None:
        """Compare what every worker has with what it must have."""
        with waiting("checking"):
            found = self._crew.ask("sums")
        right = sum(sums == self._expected_sums(rank) for rank, sums in enumerate(found))
        self.say(f"  {when}: the bytes of {right} of {NR_WORKERS} workers are right (sha256)\n")
        self.ok &= right == NR_WORKERS
        self.figures[f"workers_right_{when.replace(' ', '_')}"] = right

    def _measure(self, moment: str) -> Memory:
        own, pool = sum(self._crew.ask("blocks")), self._ksmd.read("pool_bytes")
        memory = measure(own, pool, [self._ksmd.pid, *self._crew.pids])
        amounts = (memory.own, memory.pool, memory.private, memory.used, memory.host)
        self.say(f"{moment:<11}" + "".join(f"{size(amount):>13}" for amount in amounts))
        self.figures["memory"][moment] = asdict(memory) | {"used": memory.used}
        return memory

    def _converge(self, start: float, most: int) -> float:
        """Return after how many seconds the last page merged; three full scans found no more."""
        sharing, scans, last = 0, self._ksmd.read("full_scans"), start
        with progress("merging", most) as advance:
            while self._ksmd.read("full_scans") < scans + 3:
                self._check_deadline(start, "merging")
                if (now := self._ksmd.read("pages_sharing")) != sharing:
                    advance(now - sharing)
                    sharing, scans = now, self._ksmd.read("full_scans")
                    last = time.monotonic()
        return last - start

    def _check_deadline(self, start: float, what: str) -> None:
        if time.monotonic() > start + _DEADLINE_SECONDS:
            raise KsmError(errno.ETIMEDOUT, f"still {what}: {self._ksmd.counters()}")
        time.sleep(0.01)

    def _pages_showing_frames(self) -> int:
        return self._ksmd.read("pages_shared") + self._ksmd.read("pages_sharing")

    def _mergeable_pages(self) -> int:
        """Return how many pages could be saved: equal pages of all workers, less the frames."""
        limit = self._ksmd.read("max_page_sharing")
        contents = collections.Counter(
            hashlib.blake2b(file[at : at + PAGE_SIZE].ljust(PAGE_SIZE, b"\0")).digest()
            for file in self._files
            for at in range(0, len(file), PAGE_SIZE)
        )
        sites = [NR_WORKERS * count for count in contents.values()]
        return sum(count - -(-count // limit) for count in sites)

    def _expected_sums(self, rank: int) -> list[str]:
        written = bytearray(self._files[0])
        write_marks(written, rank)
        parts: list[bytes | bytearray] = [own_data(rank), written, *self._files[1:]]
        return [hashlib.sha256(part).hexdigest() for part in parts]
