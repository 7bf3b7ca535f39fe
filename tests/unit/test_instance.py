"""The instance directory: who may claim it, who is believed to run there, what stays behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ksmemu.errors import AlreadyServedError, ForeignInstanceError, KsmError, NotRunningError
from ksmemu.instance import Claim, Instance

CLAIM_AND_WAIT = """
import sys
from ksmemu.instance import Instance
claim = Instance.resolve(sys.argv[1]).claim()
print("claimed", flush=True)
sys.stdin.read()
"""


def claiming_process(instance: Instance) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_WAIT, instance.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"claimed\n"
    return process


def test_an_argument_goes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KSMEMU_DIR", "/from/environment")
    assert Instance.resolve(tmp_path).directory == tmp_path
    assert Instance.resolve().directory == Path("/from/environment")


def test_the_run_time_directory_goes_before_the_temporary_one(monkeypatch):
    monkeypatch.setenv("KSMEMU_DIR", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert Instance.resolve().directory == Path("/run/user/7/ksmemu")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert Instance.resolve().directory == Path(tempfile.gettempdir(), f"ksmemu-{os.geteuid()}")


def test_a_relative_directory_survives_chdir(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Instance.resolve("here").directory == tmp_path / "here"


def test_a_claim_makes_a_private_directory(instance, claim):
    assert stat.S_IMODE(instance.directory.stat().st_mode) == 0o700
    assert instance.pid() == os.getpid()
    assert instance.pid_file.read_text() == f"{os.getpid()}\n"


def test_a_release_leaves_nothing(instance):
    claim = instance.claim()
    listener = instance.listen()
    instance.control.mkdir(parents=True)
    (instance.control / "run").write_text("0\n")
    instance.stats.mkdir()
    instance.proc.mkdir()
    instance.log_file.write_text("a line\n")
    claim.release()
    claim.release()
    listener.close()
    assert not instance.directory.exists()


def test_a_release_leaves_a_directory_that_was_there(tmp_path):
    instance = Instance.resolve(tmp_path)
    instance.claim().release()
    assert list(tmp_path.iterdir()) == []


def test_a_release_leaves_a_directory_in_which_a_user_put_something(instance):
    claim = instance.claim()
    (instance.directory / "notes").write_text("mine")
    instance.log_file.write_text("a line\n")
    claim.release()
    assert sorted(os.listdir(instance.directory)) == ["ksmd.log", "notes"]


def test_a_second_claim_is_refused_with_the_pid_of_the_first(instance, claim):
    with pytest.raises(AlreadyServedError, match=f"pid {os.getpid()}"):
        instance.claim()
    assert instance.pid() == os.getpid()


def test_a_second_claim_of_another_process_is_refused(instance):
    process = claiming_process(instance)
    with process, pytest.raises(AlreadyServedError, match=f"pid {process.pid}"):
        instance.claim()
    assert instance.pid() is None


def test_a_stale_pid_file_is_not_believed(instance):
    instance.directory.mkdir(mode=0o700)
    instance.pid_file.write_text(f"{os.getpid()}\n")
    assert instance.pid() is None


def test_a_killed_ksmd_can_be_followed_by_another(instance):
    process = claiming_process(instance)
    instance.control.mkdir(parents=True)
    with process:
        process.send_signal(signal.SIGKILL)
    assert instance.pid_file.exists()
    assert instance.pid() is None
    claim = instance.claim()
    assert instance.pid() == os.getpid()
    assert not instance.control.exists()
    claim.release()


def test_looking_for_the_pid_does_not_hinder_a_claim(instance, claim):
    held = os.open(instance.pid_file, os.O_RDONLY)
    claim.release()
    for _ in range(101):
        instance.pid()
        instance.claim().release()
    os.close(held)


def test_a_foreign_directory_is_refused_by_everybody(foreign):
    before = sorted(os.listdir(foreign.directory))
    for attempt in (foreign.claim, foreign.pid, foreign.listen):
        with pytest.raises((ForeignInstanceError, PermissionError)):
            attempt()
    with pytest.raises(ForeignInstanceError if os.geteuid() == 0 else NotRunningError):
        foreign.connect()  # root's directory would be believed
    with pytest.raises(ForeignInstanceError):
        foreign.claim()
    assert sorted(os.listdir(foreign.directory)) == before


def test_a_symbolic_link_is_refused(instance, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    instance.directory.symlink_to(real)
    with pytest.raises(KsmError, match="symbolic link"):
        instance.claim()
    assert list(real.iterdir()) == []


def test_a_directory_open_to_everybody_is_refused(instance):
    instance.directory.mkdir()
    instance.directory.chmod(0o777)
    with pytest.raises(KsmError, match="everybody"):
        instance.claim()


def test_a_directory_with_a_sys_of_its_own_is_refused(instance):
    """As / is: a release would remove it."""
    (instance.directory / "sys").mkdir(parents=True)
    with pytest.raises(KsmError, match="not ksmemu's"):
        instance.claim()
    assert sorted(os.listdir(instance.directory)) == ["sys"]


def test_a_missing_parent_is_an_error_that_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Instance.resolve(tmp_path / "missing" / "instance").claim()
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(instance, tmp_path):
    with pytest.raises(NotRunningError, match="ksmemu start"):
        instance.connect()
    instance.directory.mkdir()
    with pytest.raises(NotRunningError):
        instance.connect()


def test_a_socket_of_a_killed_ksmd_is_nobody(instance, claim):
    instance.listen().close()
    assert instance.socket_file.exists()
    with pytest.raises(NotRunningError):
        instance.connect()


@pytest.mark.parametrize("length", [7, 107, 108, 211])
def test_a_socket_of_a_long_path_is_reached(tmp_path, length):
    instance = Instance.resolve(tmp_path / ("d" * length))
    claim: Claim = instance.claim()
    with instance.listen() as listener, instance.connect() as worker:
        ksmd, _ = listener.accept()
        with ksmd:
            worker.send(b"hello")
            assert ksmd.recv(100) == b"hello"
        assert listener.type == socket.SOCK_SEQPACKET
        assert stat.S_IMODE(instance.socket_file.stat().st_mode) == 0o600
    claim.release()
