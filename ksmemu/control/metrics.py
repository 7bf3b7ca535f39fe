"""The figures of an instance as Prometheus metrics, read anew at each scrape. Needs prometheus_client.

Names are those of node_exporter's ksmd collector for what it shows, `ksmemu_…` for the rest.
Source: collector/ksmd_linux.go, node_exporter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.figures import figures
from ksmemu.control.files import LINUX
from ksmemu.control.ksmd import RunningKsmd, connect
from ksmemu.errors import ForeignInstanceError, KsmError
from ksmemu.instance import Instance

_CLASSIC = {
    "full_scans": "Full scans completed.",
    "merge_across_nodes": "Whether pages of different NUMA nodes may be merged.",
    "pages_shared": "Frames of the pool in use.",
    "pages_sharing": "Pages saved by sharing them.",
    "pages_to_scan": "Pages to look at before ksmd goes to sleep.",
    "pages_unshared": "Unique pages, looked at in vain.",
    "pages_volatile": "Pages written too often to be merged.",
    "run": "0: stopped, 1: scanning, 2: unmerged everything, and stopped.",
    "sleep_millisecs": "How long ksmd sleeps between two batches.",
}
"""Files that node_exporter shows, and what they say."""
_RISING = {
    *("full_scans", "pages_scanned", "pages_skipped", "pages_broken", "pages_rehomed", "pages_renewed"),
    *("merges", "verify_refusals"),
}
"""What only grows; the rest may fall."""
_UNITS = {
    "_millisecs": ("_seconds", 1e-3),
    "_ns": ("_seconds", 1e-9),
    "general_profit": ("profit_bytes", 1.0),
}
"""Metrics are in base units: what the end of a name becomes, and the factor."""
_PROCESS = {
    "ksm_rmap_items": ("rmap_items", "Pages of the process that are in the books."),
    "ksm_zero_pages": ("zero_pages", "Pages of the process that show the zero page."),
    "ksm_merging_pages": ("merging_pages", "Pages of the process that share a frame."),
    "ksm_process_profit": ("profit_bytes", "Bytes that the process saves, less metadata."),
}
"""Lines of ksm_stat, and what they are called here."""


_Labelled = tuple[tuple[str, ...], int]
"""A value, and the values of its labels."""


class InstanceCollector(Collector):
    """What one user may know of an instance: all of his own ksmd, else of his own domains.

    `ksmemu_up` is 0, and alone, while no ksmd serves there.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        found: list[Metric] = []
        with contextlib.suppress(KsmError, FileNotFoundError):  # its files go before ksmd does
            found = list(self._of_running())
        up = GaugeMetricFamily("ksmemu_up", "Whether a ksmd serves the instance.", value=float(bool(found)))
        yield up
        yield from found

    def _of_running(self) -> Iterator[Metric]:
        try:
            with connect(self._instance.directory) as ksmd:
                yield from _of_instance(ksmd)
        except ForeignInstanceError:
            pass  # of another user's, one's own domains are all that there is to know
        else:
            yield from _of_processes(self._instance)
        yield from _of_domains(figures(self._instance)["domains"])


def _of_instance(ksmd: RunningKsmd) -> Iterator[Metric]:
    names = [*_CLASSIC] if ksmd.files is LINUX else []
    for name in names:
        yield _metric("node_ksmd_", name, _CLASSIC[name], [((), ksmd.read(name))])
    values = ksmd.counters() | ksmd.stats()
    for name, counter in {**COUNTERS, **STATS}.items():
        if name in values and name not in names:
            yield _metric("ksmemu_", name, _sentence(counter.meaning), [((), values[name])])


def _of_domains(domains: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    for name, counter in {**COUNTERS, **STATS}.items():
        values: list[_Labelled] = [
            ((domain,), counters[name]) for domain, counters in domains.items() if name in counters
        ]
        if values:
            help_ = f"{_sentence(counter.meaning)} Of one security domain."
            yield _metric("ksmemu_domain_", name, help_, values, labels=("domain",))


def _of_processes(instance: Instance) -> Iterator[Metric]:
    stats = dict(_process_stats(instance))
    for name, (short, text) in _PROCESS.items():
        values: list[_Labelled] = [((pid,), int(stat[name])) for pid, stat in stats.items()]
        yield _metric("ksmemu_process_", short, text, values, labels=("pid",))


def _process_stats(instance: Instance) -> Iterator[tuple[str, dict[str, str]]]:
    for folder in instance.proc.iterdir() if instance.proc.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # it has ended since
            lines = (folder / "ksm_stat").read_text().splitlines()
            yield folder.name, dict(line.replace(":", "").split(maxsplit=1) for line in lines)


def _metric(
    prefix: str, name: str, text: str, values: Iterable[_Labelled], labels: tuple[str, ...] = ()
) -> Metric:
    """Return a metric, in base units, with a value for each tuple of labels."""
    end, (new_end, factor) = next(
        ((end, unit) for end, unit in _UNITS.items() if name.endswith(end)), ("", ("", 1.0))
    )
    kind = CounterMetricFamily if name in _RISING else GaugeMetricFamily
    full = prefix + name.removesuffix(end).removeprefix("ksm_") + new_end
    metric = kind(full, text, labels=labels)
    for of, value in values:
        metric.add_metric(of, value * factor)
    return metric


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:].removesuffix(', in ns')}."
