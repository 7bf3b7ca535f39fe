"""`ksmemu exec`: the command finds the instance in the kernel's place, or is not run at all."""

import os
import shutil
import signal
import stat
import subprocess

import pytest

from ksmemu.features import KSM
from tests.support.in_place import AS_ORDINARY_USER, EXEC, kernels_files, run
from tests.support.waiting import wait_until

CALLERS = {"the caller": (), "an ordinary user": AS_ORDINARY_USER}


@pytest.fixture(params=CALLERS)
def prefix(request):
    return CALLERS[request.param]


@pytest.fixture
def ksmd(start_ksmd):
    return start_ksmd(pages_to_scan=1009)


@pytest.fixture
def no_store_reaches_the_kernel(the_machine_stays_as_it_is):
    before = kernels_files()
    yield before
    assert kernels_files() == before


def test_the_command_reads_and_writes_the_instance(ksmd, prefix, no_store_reaches_the_kernel):
    wanted = int(no_store_reaches_the_kernel["sleep_millisecs"]) + 7
    ran = run(
        ksmd.directory,
        *("sh", "-c", 'cd "$0" && ls && head -1 pages_to_scan && echo "$1" > sleep_millisecs'),
        *(str(KSM), str(wanted)),
        prefix=prefix,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    *names, value = ran.stdout.split()
    assert (set(names), value) == (set(os.listdir(ksmd.control)), "1009")
    wait_until(lambda: ksmd.read("sleep_millisecs") == wanted)


@pytest.mark.root
def test_files_served_by_fuse_lie_there_too(start_ksmd, prefix, no_store_reaches_the_kernel):
    ksmd = start_ksmd(fuse=True, pages_to_scan=1013)
    script = 'cd "$0" && cat pages_to_scan && echo 17 > sleep_millisecs && echo junk > run'
    ran = run(ksmd.directory, "sh", "-c", script, str(KSM), prefix=prefix)
    assert ran.stdout == "1013\n"
    assert "error" in ran.stderr  # the kernel's EINVAL, in the words of sh
    assert (ran.returncode, ksmd.read("sleep_millisecs")) == (1, 17)


def test_the_command_is_who_its_caller_is_and_cannot_look_below(ksmd):
    """Without the capabilities of the namespace in which the files were laid over the kernel's."""
    ran = run(
        ksmd.directory,
        *("sh", "-c", 'id -u; id -g; grep CapEff /proc/self/status; umount "$0" || echo refused', str(KSM)),
        prefix=AS_ORDINARY_USER,
    )
    assert ran.stdout.split() == ["1009", "1013", "CapEff:", "0" * 16, "refused"]


def test_a_caller_inside_the_kernels_directory_is_moved_out(ksmd, prefix, no_store_reaches_the_kernel):
    """His working directory lies below the mount: a relative path would still lead there."""
    ran = run(
        ksmd.directory, "sh", "-c", "cat pages_to_scan; echo 3 > sleep_millisecs", prefix=prefix, cwd=KSM
    )
    assert (ran.stdout, ran.stderr) == ("1009\n", "")
    wait_until(lambda: ksmd.read("sleep_millisecs") == 3)


def test_the_status_is_the_commands(ksmd, prefix):
    for command, status in (
        (["sh", "-c", "exit 23"], 23),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM),
        (["sh", "-c", "kill -PIPE $$"], -signal.SIGPIPE),
        (["/no/program/of/this/name"], 127),
        (["/etc/passwd"], 126),
    ):
        ran = run(ksmd.directory, *command, prefix=prefix)
        assert ran.returncode == status, command
        assert ran.stderr.count("\n") == (status in {126, 127}), command


def test_the_command_has_the_pid_that_was_started(ksmd, prefix):
    """So that a signal, and whoever waits, meets the command itself."""
    command = [*prefix, *EXEC, "--dir", str(ksmd.directory), "sh", "-c", "echo $$"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.read() == f"{process.pid}\n"


@pytest.mark.parametrize("does", ["nothing", "another directory", "fails"])
def test_nothing_is_run_unless_the_files_are_the_instances(
    ksmd, prefix, does, tmp_path, no_store_reaches_the_kernel
):
    """The negative control: a mount(8) that does not mount, or mounts an equal directory."""
    alike = shutil.copytree(ksmd.control, tmp_path / "alike")
    acts = {
        "nothing": "exit 0",
        "another directory": f'exec {shutil.which("mount")} --bind "{alike}" "$3"',
        "fails": 'echo "mount: no, because" >&2; echo and more >&2; exit 32',
    }
    # `ksmemu exec` tries a mount of /dev/null first: that one may pass.
    _program(tmp_path / "bin/mount", f'[ "$2" = /dev/null ] && exit 0\n{acts[does]}')
    ran = run(
        ksmd.directory,
        *("touch", str(tmp_path / "was run")),
        prefix=prefix,
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
    )
    assert ran.returncode == 1
    assert not (tmp_path / "was run").exists()
    reason = "mount: no, because" if does == "fails" else ""
    assert ran.stderr == f"ksmemu: {ksmd.control} does not lie over {KSM}, nothing was run: {reason}\n"


def _program(path, text):
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU | stat.S_IXOTH | stat.S_IROTH)


def test_a_kernel_without_ksm_is_status_3(ksmd):
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    without = [
        "unshare",
        *user,
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs tmpfs /sys/kernel/mm && exec "$0" "$@"',
    ]
    ran = run(ksmd.directory, "true", prefix=without)
    assert ran.returncode == 3
    assert ran.stderr.startswith("ksmemu: no  CONFIG_KSM: ")


def test_where_user_namespaces_are_not_granted_is_status_3(ksmd):
    """The caller's own namespace is the last that there may be."""
    last = 'echo 1 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", last, *AS_ORDINARY_USER]
    ran = run(ksmd.directory, "true", prefix=prefix)
    assert ran.returncode == 3
    assert ran.stderr.startswith("ksmemu: no  private mounts: ")
    assert "sysctl user.max_user_namespaces" in ran.stderr
