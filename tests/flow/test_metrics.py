"""`ksmemu metrics`: what Prometheus is told, and whether the dashboard asks for what there is."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ksmemu.control.counters import COUNTERS, STATS
from tests.support import books, crew
from tests.support.books import Member
from tests.support.cores import ROOT
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

CLASSIC = {
    "node_ksmd_full_scans_total": ("full_scans", 1),
    "node_ksmd_merge_across_nodes": ("merge_across_nodes", 1),
    "node_ksmd_pages_shared": ("pages_shared", 1),
    "node_ksmd_pages_sharing": ("pages_sharing", 1),
    "node_ksmd_pages_to_scan": ("pages_to_scan", 1),
    "node_ksmd_pages_unshared": ("pages_unshared", 1),
    "node_ksmd_pages_volatile": ("pages_volatile", 1),
    "node_ksmd_run": ("run", 1),
    "node_ksmd_sleep_seconds": ("sleep_millisecs", 1e-3),
}
NR_PAGES = 31
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 17, "smart_scan": 0}


@contextlib.contextmanager
def serving(directory, listen="0"):
    """Yield the function that scrapes: {(name, labels): value}, and the families, by name."""
    command = [sys.executable, "-m", "ksmemu", "metrics", "--dir", str(directory), "--listen", listen]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()

        def scrape():
            with urllib.request.urlopen(url, timeout=20) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
            samples = [sample for family in families for sample in family.samples]
            values = {(s.name, tuple(s.labels.items())): s.value for s in samples}
            assert len(values) == len(samples)
            return values, {family.name: family for family in families}

        yield scrape
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def merged(start_ksmd, crew_of):
    """A ksmd at rest, with members of two domains that share pages."""
    ksmd = start_ksmd(**FAST)
    members = [Member.join(crew_of(ksmd), NR_PAGES, label) for label in ("a", "a", "b")]
    for member in members:
        member.call(crew.put, 0, range(1, NR_PAGES + 1))
    books.wait_at_rest(ksmd)
    ksmd.write("run", 0)
    return ksmd, members


def test_every_figure_is_told_under_its_name(merged):
    ksmd, members = merged
    with serving(ksmd.directory) as scrape:
        values, families = scrape()
    for name, (file, factor) in CLASSIC.items():
        assert values[name, ()] == pytest.approx(ksmd.read(file) * factor)
    assert values["ksmemu_up", ()] == 1
    assert values["ksmemu_merges_total", ()] == ksmd.read("merges") == 2 * NR_PAGES
    assert values["ksmemu_profit_bytes", ()] == ksmd.read("general_profit")
    assert values["ksmemu_freeze_max_seconds", ()] == pytest.approx(ksmd.read("freeze_max_ns") / 1e9)
    shown = [name for name in families if name.startswith("ksmemu_") and "_domain_" not in name]
    apart = {name.removeprefix("node_ksmd_").removesuffix("_total") for name in CLASSIC}
    assert len(shown) == 1 + len(COUNTERS.keys() | STATS.keys()) - len(COUNTERS.keys() & apart) + 4
    assert all(family.documentation.endswith(".") for family in families.values())
    for member in members:
        pid = (("pid", str(member.worker.pid)),)
        assert values["ksmemu_process_rmap_items", pid] == NR_PAGES
    assert values["ksmemu_domain_pages_sharing", (("domain", members[0].domain),)] == NR_PAGES
    assert values["ksmemu_domain_pages_sharing", (("domain", members[2].domain),)] == 0


def test_names_and_units_are_those_of_prometheus(merged):
    """As promtool check metrics has it: totals are counters and nothing else is, units are base units."""
    with serving(merged[0].directory) as scrape:
        _, families = scrape()
    for family in families.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert not family.name.endswith(("_total", "_ns", "_millisecs", "_count", "_sum", "_bucket"))
        is_counter = {sample.name.endswith("_total") for sample in family.samples}
        assert is_counter <= {family.type == "counter"}, family.name


def test_the_dashboard_asks_for_what_is_served(merged):
    dashboard = json.loads((ROOT / "examples/grafana.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    with serving(merged[0].directory) as scrape:
        values, _ = scrape()
    served = {}
    for name, labels in values:
        served.setdefault(name, set()).update(label for label, _ in labels)
    for target in targets:
        asked = re.findall(r"\b(?:node_ksmd|ksmemu)_\w+", target["expr"])
        assert asked, target
        for name in asked:
            assert name in served, name
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - {"instance"}
            assert legend <= served[name], target
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_it_goes_on_without_a_ksmd_and_with_the_next_one(start_ksmd, tmp_path):
    with serving(tmp_path / "ksmd0") as scrape:
        assert scrape()[0] == {("ksmemu_up", ()): 0}
        ksmd = start_ksmd()
        assert ksmd.directory == tmp_path / "ksmd0"
        assert scrape()[0]["ksmemu_up", ()] == 1
        ksmd.close()
        wait_until(lambda: scrape()[0] == {("ksmemu_up", ()): 0}, what="its end")


def test_a_ksmd_whose_files_are_gone_already_is_down(start_ksmd):
    ksmd = start_ksmd()
    files, elsewhere = ksmd.directory / "sys", ksmd.directory / "elsewhere"
    with serving(ksmd.directory) as scrape:
        files.rename(elsewhere)
        assert scrape()[0] == {("ksmemu_up", ()): 0}
        elsewhere.rename(files)
        assert scrape()[0]["ksmemu_up", ()] == 1


def test_it_listens_on_loopback_unless_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = _run("--dir", str(tmp_path), "--listen", str(port))
        assert ran.returncode == 2
        why = f"--listen: 127.0.0.1:{port}: Address already in use"
        assert ran.stderr == f"ksmemu metrics: {why}; see --help\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "Missing option '--listen'"),
        (["--listen", "x"], "is not [HOST:]PORT"),
        (["--listen", "65536"], "is not [HOST:]PORT"),
        (["--listen", "127.0.0.1:"], "is not [HOST:]PORT"),
        (["--listen", "9" * 5000], "is not [HOST:]PORT"),
        (["--listen", "a..b:0"], "a..b is no host"),
        (["--listen", "192.0.2.1:0"], "192.0.2.1:0: Cannot assign requested address"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, why):
    ran = _run(*arguments)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert why in ran.stderr


def _run(*arguments):
    command = [sys.executable, "-m", "ksmemu", "metrics", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_page_is_what_the_dashboard_takes_it_for():
    assert f"* {PAGE}" in (ROOT / "examples/grafana.json").read_text()
