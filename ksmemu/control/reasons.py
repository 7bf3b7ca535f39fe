"""Why memory is not merged, or that it is: what ksmd answers to `ksmemu explain`, and what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict


class Reason(enum.IntEnum):
    """What holds of a page or of a range of them; one at a time."""

    MERGED = 0
    ZERO_PAGE = 1
    NO_DATA = 2
    NOT_ADVISED = 3
    REFUSED = 4
    NEW = 5
    LOOKED_AT = 6
    BEING_MERGED = 7
    REHOMING = 8
    VOLATILE = 9
    UNIQUE = 10
    SHARING_LIMIT = 11
    OTHER_NODE = 12
    MAPPING_BUDGET = 13
    NO_ROOM = 14
    LEFT = 15
    OTHER_DOMAIN = 16
    NO_FILL = 17

    @property
    def words(self) -> str:
        """As people, and `--json`, name it."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Text:
    """What a reason means, and what to do where it is unwelcome."""

    meaning: str
    remedy: str = ""


TEXTS: Mapping[Reason, Text] = {
    Reason.MERGED: Text("shows a frame of the pool; xN: up to N pages share one"),
    Reason.ZERO_PAGE: Text("holds zeros, and shows the kernel's zero page"),
    Reason.NO_DATA: Text("mergeable, and nothing was written here so far"),
    Reason.NOT_ADVISED: Text(
        "nobody has said that it is mergeable",
        "madvise(MADV_MERGEABLE), set_memory_merge(True), or merge_pid",
    ),
    Reason.REFUSED: Text(
        "the process said MADV_UNMERGEABLE or set_memory_merge(False)",
        "madvise(MADV_MERGEABLE) in that process",
    ),
    Reason.NEW: Text("no scan has passed it yet", "wait: it can be merged in the second full scan"),
    Reason.LOOKED_AT: Text("quiet for a full scan, not matched yet", "wait for the end of this full scan"),
    Reason.BEING_MERGED: Text("its process was told to merge it", "wait; a stopped process does not obey"),
    Reason.REHOMING: Text("was written or unmerged: on its way back to its own object"),
    Reason.VOLATILE: Text(
        "written since the scan before the last one", "wait: quiet for a full scan, it is matched"
    ),
    Reason.UNIQUE: Text("no other page in the books has these bytes", "advise the memory that has them too"),
    Reason.SHARING_LIMIT: Text(
        "equal pages are merged, and their frames are full",
        "a larger max_page_sharing; run=2 first: nothing may be shared",
    ),
    Reason.OTHER_NODE: Text(
        "equal pages are on another node only",
        "merge_across_nodes=1; run=2 first: nothing may be shared",
    ),
    Reason.OTHER_DOMAIN: Text(
        "equal pages of your own are in another security domain only",
        "the same label: AddressSpace(domain=...), $KSMEMU_DOMAIN",
    ),
    Reason.MAPPING_BUDGET: Text(
        "its process is near its limit of mappings", "sysctl vm.max_map_count=262144"
    ),
    Reason.NO_FILL: Text(
        "neither zeros nor 0xff: this ksmd merges nothing else", "start ksmd without --fills-only"
    ),
    Reason.LEFT: Text("merged still, as in 2009, though its advice was withdrawn"),
    Reason.NO_ROOM: Text("the pool has no room for another frame", "more memory, or a larger /dev/shm"),
}

STOPPED: Mapping[str, str] = {
    "run=0": "ksmemu set run=1",
    "run=2": "ksmemu set run=1",
    "pages_to_scan=0": "ksmemu set pages_to_scan=10000",
}
"""Why nothing is scanned at all, and what to do; in front of all other reasons."""

SILENT: Mapping[str, str] = {
    "it does not answer": "it is stopped, or its agent waits: let it run",
    "it was cut off": "it spoke garbage or lost its agent: restart it; ksmd.log says more",
}
"""Why nothing is merged in one process, and what to do."""

Row = tuple[int, int, int, int, int]
"""Start, end, Reason, pages that hold data, and, where merged, the most that share one frame."""


class ExplainedSpace(TypedDict):
    """One address space: its rows ascend and leave nothing out, each is as long as its reason holds."""

    start: int
    end: int
    node: int
    rows: list[Row]


class ExplainedWorker(TypedDict):
    """One process in one domain. `silent` is a key of SILENT, or None. Pages that hold data by reason."""

    pid: int
    domain: str
    silent: str | None
    totals: dict[str, int]
    spaces: list[ExplainedSpace]


class ExplainedPage(TypedDict):
    """What the books say of one page.

    `state` is a name of rmap.State. `age` and `skips`: visits so far, and those that smart scan still skips.
    `sharers`: pages that show its frame. `dups`: pages that show each frame of its content. `compared`: the
    other pages whose content is known.
    """

    address: int
    state: str
    age: int
    skips: int
    sharers: int
    dups: list[int]
    compared: int


class Explained(TypedDict):
    """The answer. `stopped` is a key of STOPPED, or None; `page` is there if an address was given."""

    stopped: str | None
    workers: list[ExplainedWorker]
    page: ExplainedPage | None
