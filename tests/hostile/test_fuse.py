"""Whoever dies, no mount stays; and what is mounted in the instance directory is never walked into."""

import errno
import os
import signal
import subprocess
import threading

import pytest

import ksmemu
from ksmemu.mounts import Mount, below, detach
from tests.support import procmaps
from tests.support.errnos import number_of
from tests.support.stores import mounts
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


@pytest.fixture
def served(start_ksmd):
    return start_ksmd(fuse=True)


@pytest.fixture
def server(served):
    """The pid of the FUSE server."""
    [pid] = procmaps.children(served.pid)
    return pid


def folder_of(ksmd):
    return ksmd.directory / "sys/kernel/mm/ksm"


def kill(ksmd):
    """SIGKILL, without the clean-up of Ksmd.stop()."""
    os.kill(ksmd.pid, signal.SIGKILL)
    wait_until(lambda: ksmd._has_ended(0), what="the end of ksmd")


def has_gone(pid):
    """Whether a process has ended; who has lost its parent is reaped by another."""
    try:
        with open(f"/proc/{pid}/stat") as text:
            return text.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_ksmd_that_is_killed_takes_server_and_mount_along(served, server):
    held = os.open(folder_of(served) / "run", os.O_RDONLY)
    assert os.pread(held, 9, 0) == b"0\n"
    kill(served)
    wait_until(lambda: has_gone(server), what="the end of the server")
    assert mounts(served.directory) == []
    for use in (lambda: os.pread(held, 9, 0), lambda: os.close(held)):
        with pytest.raises(OSError) as dead:
            use()
        assert dead.value.errno in DEAD
    with ksmemu.Ksmd(served.directory, fuse=True) as again:
        again.write("run", 1)
        assert again.read("run") == 1
    assert mounts(served.directory) == []


def test_a_new_ksmd_may_start_at_once_and_keeps_its_mount(served, server):
    kill(served)
    with ksmemu.Ksmd(served.directory, fuse=True) as again:
        wait_until(lambda: has_gone(server), what="the end of the old server")
        again.write("sleep_millisecs", 7)
        assert len(mounts(served.directory)) == 1
    assert mounts(served.directory) == []


def test_a_store_that_waits_for_a_ksmd_that_is_killed_ends_in_an_error(served):
    fd, errors = os.open(folder_of(served) / "run", os.O_WRONLY), []
    os.kill(served.pid, signal.SIGSTOP)
    waiting = threading.Thread(target=lambda: errors.append(number_of(os.pwrite, fd, b"1", 0)))
    waiting.start()
    wait_until(
        lambda: procmaps.waits_in(waiting.native_id) == "request_wait_answer", what="the store to wait"
    )
    kill(served)
    waiting.join(20)
    [error] = errors
    assert error in DEAD
    number_of(os.close, fd)
    wait_until(lambda: mounts(served.directory) == [], what="the mount to go")  # it answers reads until then
    with pytest.raises(ksmemu.KsmError, match="has gone") as gone:
        served.read("run")
    assert gone.value.errno == errno.ESRCH


def test_without_its_server_ksmd_goes_on_and_says_so(served, server):
    os.kill(server, signal.SIGKILL)
    log = served.directory / "ksmd.log"
    wait_until(lambda: "the FUSE server has gone" in log.read_text(), what="a line in the log")
    wait_until(lambda: mounts(served.directory) == [], what="the mount to go")
    wait_until(lambda: procmaps.children(served.pid) == set(), what="no child to be left")
    with pytest.raises(FileNotFoundError):
        served.read("run")
    with ksmemu.AddressSpace(4096, instance=served.directory) as space:
        space.mmap(4096)
        space.madvise_all(ksmemu.MADV_MERGEABLE)
        wait_until(lambda: served.read("spaces") == 1, what="the space to be known")


def test_a_start_over_a_dead_mount_cleans_it(served, server):
    os.kill(served.pid, signal.SIGSTOP)  # else it would unmount
    os.kill(server, signal.SIGKILL)
    kill(served)
    wait_until(lambda: has_gone(server), what="the end of the server")
    assert mounts(served.directory)
    with pytest.raises(OSError) as dead:
        os.listdir(folder_of(served))
    assert dead.value.errno in DEAD
    with ksmemu.Ksmd(served.directory) as plain:
        assert mounts(served.directory) == []
        plain.write("run", 1)
    assert not folder_of(served).exists()


@pytest.mark.parametrize("tree", ["stats", "sys/kernel/mm/ksm"])
def test_what_somebody_else_has_mounted_is_left_alone(start_ksmd, tree):
    plain = start_ksmd()
    kill(plain)
    place = plain.directory / tree
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        (place / "precious").touch()
        with pytest.raises(ksmemu.KsmError, match=f"something is mounted at {place}"):
            ksmemu.Ksmd(plain.directory)
        assert (place / "precious").exists()
    finally:
        subprocess.run(["umount", place], check=True)
    with ksmemu.Ksmd(plain.directory) as again:
        assert again.read("run") == 0


def test_a_mount_that_has_taken_the_place_of_another_is_not_detached(tmp_path):
    place = tmp_path / "a b\\c"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        [mount] = below(tmp_path)
        assert (mount.path, mount.kind) == (str(place), "tmpfs")
        detach(Mount(mount.path, "0:0", mount.kind))
        assert below(tmp_path) == [mount]
    finally:
        subprocess.run(["umount", place], check=True)
    assert below(tmp_path) == []
