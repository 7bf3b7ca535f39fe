"""`virsh node-memory-tune` through `ksmemu exec`, with the driver inside virsh: no daemon."""

import os
import re

import pytest

from tests.support.in_place import run
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

SHOWN = (
    "pages_to_scan",
    "sleep_millisecs",
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "full_scans",
    "merge_across_nodes",
)
_USER = "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
_GROUP = "libvirt-qemu:x:64055:\n"
_IN_PRIVATE = """
mount --bind passwd /etc/passwd && mount --bind group /etc/group && mount -t tmpfs tmpfs /run && exec "$@"
"""
"""libvirt wants the user that its package makes, and keeps files in /run: both only where virsh sees them."""


@pytest.fixture
def virsh(debian, ksmd, tmp_path):
    """Run node-memory-tune with options."""
    for file, line in (("passwd", _USER), ("group", _GROUP)):
        with open(f"/etc/{file}") as there:
            (tmp_path / file).write_text(there.read() + line)
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/qemu.conf").write_text('security_driver = "none"\n')
    libraries = [debian / place / f"{os.uname().machine}-linux-gnu" for place in ("usr/lib", "lib")]
    env = {
        "HOME": str(tmp_path),
        "LC_ALL": "C",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "LIBVIRT_DRIVER_DIR": str(libraries[0] / "libvirt/connection-driver"),
    }
    settings = [f"{name}={value}" for name, value in env.items()]
    program = [
        "env",
        *settings,
        str(debian / "usr/bin/virsh"),
        "-c",
        f"qemu:///embed?root={tmp_path / 'root'}",
    ]

    def tune(*options):
        command = ["sh", "-c", _IN_PRIVATE, "sh", *program, "node-memory-tune", *map(str, options)]
        return run(ksmd.directory, *command, cwd=tmp_path)

    return tune


@pytest.fixture
def memory_tune(virsh):
    """Run node-memory-tune with options; return what it shows."""

    def tune(*options):
        ran = virsh(*options)
        assert ran.returncode == 0, ran.stderr
        return {name: int(value) for name, value in re.findall(r"shm_(\w+)\s+(\d+)", ran.stdout)}

    return tune


def test_it_shows_what_the_files_say(ksmd, twins, memory_tune):
    twins.settle()
    shown = memory_tune()
    assert shown == {name: ksmd.read(name) for name in SHOWN}
    assert shown["pages_sharing"] == twins.nr_pages


def test_what_it_stores_is_obeyed(ksmd, twins, memory_tune):
    memory_tune("--shm-pages-to-scan", 7919, "--shm-sleep-millisecs", 3)
    wait_until(lambda: (ksmd.read("pages_to_scan"), ksmd.read("sleep_millisecs")) == (7919, 3))
    memory_tune("--shm-merge-across-nodes", 0)
    wait_until(lambda: ksmd.read("merge_across_nodes") == 0)
    assert memory_tune()["merge_across_nodes"] == 0
    twins.settle()
    assert memory_tune()["pages_sharing"] == twins.nr_pages


def test_merge_across_nodes_stays_while_anything_is_shared(ksmd, twins, virsh, memory_tune):
    twins.settle()
    ran = virsh("--shm-merge-across-nodes", 0)
    if os.path.ismount(ksmd.control):
        # With EBUSY, but libvirt says EPERM whatever the errno was.
        assert ran.returncode == 1
        assert "failed to set shm_merge_across_nodes" in ran.stderr
    log = ksmd.directory / "ksmd.log"
    wait_until(lambda: "merge_across_nodes: store of '0' refused" in log.read_text())
    assert memory_tune()["merge_across_nodes"] == 1
