"""`ksmemu bench` on ksmemu alone, as anybody can run it."""

import os
import signal

import pytest

from tests.support.bench import figures, in_the_midst, processes_of, run
from tests.support.waiting import wait_until

ALONE = "--alone"


def test_every_workload_has_its_figures(the_machine_may_be_changed):
    found = figures(ALONE, "--rounds=1")
    assert list(found) == [
        "twins", "images", "scattered", "unique", "fills", "churn", "break",
        "unmerge", "many", "half", "asleep", "fingerprint",
    ]  # fmt: skip
    for name in ("twins", "images", "scattered", "unique", "fills", "unmerge", "many", "half"):
        assert found[name]["wall_s"]["ksmemu"]["median"] > 0
        assert found[name]["cpu_s"]["ksmemu"]["median"] > 0
    assert found["scattered"]["mappings"]["ksmemu"]["median"] > 256  # a page is a mapping
    assert found["churn"]["scans"]["ksmemu"]["median"] >= 4
    assert 50 < found["churn"]["kept_percent"]["ksmemu"]["median"] <= 100
    assert found["break"]["merged_us"]["ksmemu"]["median"] > found["break"]["plain_us"]["ksmemu"]["median"]
    wakes = {name: found["asleep"][name]["ksmemu"]["max"] for name in found["asleep"] if "wakes" in name}
    assert wakes == {"unregistered_wakes": 0, "stopped_wakes": 0, "unadvised_wakes": 0}
    assert found["fingerprint"]["checksum_by_read"]["ksmemu"]["median"] > 0


def test_rounds_are_kept_one_by_one():
    wall = figures(ALONE, "--rounds=3", "twins")["twins"]["wall_s"]
    assert set(wall) == {"ksmemu"}
    assert len(wall["ksmemu"]["rounds"]) == 3
    assert wall["ksmemu"]["min"] == min(wall["ksmemu"]["rounds"])


def test_a_person_gets_lines_of_80_columns():
    ran = run(ALONE, "--rounds=2", "fills", "twins")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "\x1b" not in ran.stdout
    assert "ksmemu alone" in ran.stdout
    assert ran.stdout.index("fills: 1 x 1 MiB") < ran.stdout.index("twins: 2 x 1 MiB")


def test_images_of_ones_own(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"".join(bytes([n]) * 4096 for n in range(1, 102)))
    images = [f"--image={tmp_path / name}" for name in "ab"]
    ran = run(ALONE, "--rounds=1", *images, "images")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "images: 2 x 0.394531 MiB" in ran.stdout


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    assert run(ALONE, "--rounds=1", f"--plot={path}", "fills").returncode == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_nothing_is_begun(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'matplotlib' else find(name, *rest)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ran = run(ALONE, f"--plot={tmp_path / 'a.png'}", "fills", env={"PYTHONPATH": path})
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "ksmemu: --plot needs matplotlib: pip install 'ksmemu[plot]'\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["twin"], "no workload 'twin'"),
        (["--size=twin=3"], "no size 'twin'"),
        (["--size=twins=0"], "is not NAME=MIB"),
        (["--size=twins"], "is not NAME=MIB"),
        (["--rounds=0"], "--rounds"),
        (["--image=/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_word_is_a_usage_error(arguments, part):
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert part in ran.stderr


@pytest.mark.root  # who sees the environment of every process
def test_an_interrupted_run_leaves_nothing(tmp_path):
    with in_the_midst(tmp_path, ALONE, "twins") as bench:
        bench.send_signal(signal.SIGINT)
        _, complaint = bench.communicate(timeout=60)
        assert (bench.returncode, complaint.strip()) == (1, "ksmemu: interrupted")
    wait_until(lambda: not processes_of(tmp_path), what="the end of all processes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root  # who sees the environment of every process
def test_a_killed_run_leaves_no_process(tmp_path):
    with in_the_midst(tmp_path, ALONE, "twins") as bench:
        bench.kill()
        bench.wait()
        wait_until(lambda: not processes_of(tmp_path), what="the end of all processes")
