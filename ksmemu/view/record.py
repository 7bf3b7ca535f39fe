"""A recorded run: samples, a line of JSON each, and in the last line how every page looked at the end.

watch --record -> record.py -> report --from. The last line is written anew with each sample, so whatever ends
the recording, there are page maps.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ksmemu.control.page_map import PageMaps, asked, decode
from ksmemu.errors import KsmError
from ksmemu.instance import Instance
from ksmemu.view.sample import Sample

FORMAT = "ksmemu record 1"
_SHARE = 20
"""Page maps take at most so small a part of the time, however much memory there is."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of a run.

    Attributes:
        samples: at least one.
        maps: of the last of them, or a little older.
        names: of processes, as far as they are known, by pid.
    """

    samples: list[Sample]
    maps: PageMaps
    names: dict[int, str]


class Recorder:
    """Writes a run to a file while it goes on.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, instance: Instance) -> None:
        self._instance = instance
        self._file = path.open("wb", buffering=0)
        self._file.write(json.dumps({"format": FORMAT}).encode() + b"\n")
        self._end = self._maps = b""
        self._next = 0.0

    def added(self, sample: Sample) -> Sample:
        """Write a sample, and how pages look now, and return it; errors as those of page_maps()."""
        if (now := time.monotonic()) >= self._next:
            maps = asked(self._instance)
            names = {worker["pid"]: name_of(worker["pid"]) for worker in sample.figures["workers"]}
            packed = base64.b85encode(zlib.compress(maps, 1)).decode()
            self._maps = json.dumps({"maps": packed, "names": names}).encode() + b"\n"
            self._next = now + _SHARE * (time.monotonic() - now)
        line = json.dumps({"at": sample.at, "figures": sample.figures}).encode() + b"\n"
        self._file.seek(-len(self._end), os.SEEK_END)
        self._end = self._maps
        self._file.write(line + self._end)
        self._file.truncate()
        return sample

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read(path: Path) -> Run:
    """Return a recorded run.

    Raises:
        OSError: the file cannot be read. ValueError: it is no record, or holds no sample.
    """
    first, *lines = path.read_bytes().splitlines() or [b""]
    try:
        if json.loads(first) != {"format": FORMAT}:
            raise ValueError
        *samples, last = map(json.loads, lines)
        maps = decode(zlib.decompress(base64.b85decode(last["maps"])))
        names = {int(pid): name for pid, name in last["names"].items()}
        run = Run([Sample(one["at"], one["figures"]) for one in samples], maps, names)
        _ = run.samples[-1].saved_bytes
    except IndexError:
        raise ValueError(f"{path} holds no sample") from None
    except (ValueError, KeyError, TypeError, binascii.Error, zlib.error, KsmError):
        raise ValueError(f"{path} is no record of `ksmemu watch --record`, or was cut off") from None
    return run


def name_of(pid: int) -> str:
    """Return the name of a process; none, if it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""
