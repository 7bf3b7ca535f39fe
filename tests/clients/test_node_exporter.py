"""prometheus-node-exporter scrapes the control directory."""

import re
import socket
import subprocess
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from tests.support.in_place import EXEC
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

SERIES = {
    "node_ksmd_full_scans_total": "full_scans",
    "node_ksmd_merge_across_nodes": "merge_across_nodes",
    "node_ksmd_pages_shared": "pages_shared",
    "node_ksmd_pages_sharing": "pages_sharing",
    "node_ksmd_pages_to_scan": "pages_to_scan",
    "node_ksmd_pages_unshared": "pages_unshared",
    "node_ksmd_pages_volatile": "pages_volatile",
    "node_ksmd_run": "run",
    "node_ksmd_sleep_seconds": "sleep_millisecs",
}
SUCCESS = 'node_scrape_collector_success{collector="ksmd"}'


@pytest.fixture
def scraped(debian, tmp_path):
    """Start an exporter, scraped(path_of_sysfs, *prefix): a context that yields the function that scrapes."""

    @contextmanager
    def start(sysfs, *prefix):
        address = f"127.0.0.1:{_free_port()}"
        command = [
            *prefix,
            str(debian / "usr/bin/prometheus-node-exporter"),
            f"--path.sysfs={sysfs}",
            "--collector.disable-defaults",
            "--collector.ksmd",
            f"--web.listen-address={address}",
        ]
        with (tmp_path / "exporter.log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            wait_until(lambda: _is_up(process, address), what="the exporter")
            yield lambda: _scrape(address)
        finally:
            process.terminate()
            process.wait()

    return start


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _is_up(process, address):
    assert process.poll() is None, "the exporter has ended"
    try:
        return _scrape(address)
    except urllib.error.URLError:
        return None


def _scrape(address):
    """Return the values of all series by name."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(node_\S+) (\S+)$", text, re.MULTILINE)}


def _figures(found):
    return {name: value for name, value in found.items() if name.startswith("node_ksmd")}


def _files(ksmd):
    values = {series: float(ksmd.read(name)) for series, name in SERIES.items()}
    values["node_ksmd_sleep_seconds"] /= 1000
    return values


def _shows_the_files(ksmd, scrape):
    found = scrape()
    assert found[SUCCESS] == 1
    assert _figures(found) == _files(ksmd)
    return found


def test_every_series_has_the_value_of_its_file(ksmd, twins, scraped):
    with scraped(ksmd.directory / "sys") as scrape:
        assert _shows_the_files(ksmd, scrape)["node_ksmd_pages_sharing"] == 0
        twins.settle()
        assert _shows_the_files(ksmd, scrape)["node_ksmd_pages_sharing"] == twins.nr_pages
        twins.part(23)
        ksmd.write("sleep_millisecs", 37)
        twins.settle()
        found = _shows_the_files(ksmd, scrape)
        assert found["node_ksmd_pages_sharing"] == twins.nr_pages - 23
        assert found["node_ksmd_sleep_seconds"] == 0.037


def test_every_scrape_succeeds_while_ksmd_scans_at_full_speed(ksmd, twins, scraped):
    ksmd.write("sleep_millisecs", 0)
    ksmd.write("run", 1)
    with scraped(ksmd.directory / "sys") as scrape:
        found = [scrape() for _ in range(53)]
        wait_until(lambda: scrape()["node_ksmd_pages_sharing"] == twins.nr_pages, what="merged pages")
        found.append(scrape())
    assert {one[SUCCESS] for one in found} == {1}
    assert {frozenset(_figures(one)) for one in found} == {frozenset(SERIES)}
    scans = [one["node_ksmd_full_scans_total"] for one in found]
    assert scans == sorted(scans)
    assert scans[0] < scans[-1]


def test_it_finds_the_instance_in_the_kernels_place(ksmd, twins, scraped):
    twins.settle()
    with scraped("/sys", *EXEC, "--dir", str(ksmd.directory), "--") as scrape:
        assert _shows_the_files(ksmd, scrape)["node_ksmd_pages_sharing"] == twins.nr_pages
