"""`ksmemu report`: its numbers are the counters, and a recount; of an instance, and of a recorded run."""

import base64
import html.parser
import json
import os
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest

from ksmemu.cli import main
from ksmemu.control.look import Look
from ksmemu.control.page_map import CHUNK, NO_FRAME, PageMap, PageMaps, encode
from ksmemu.units import PAGE_SIZE
from ksmemu.view import report, sharing
from ksmemu.view.cells import cells
from ksmemu.view.record import FORMAT, Run, read
from ksmemu.view.sample import Sample
from tests.support import crew, procmaps
from tests.support.processes import Worker

HEAD = json.dumps({"format": FORMAT}) + "\n"
PNG = b"\x89PNG\r\n\x1a\n"
ME = os.getpid()


def ksmemu(ksmd, *arguments, cwd=None):
    command = [sys.executable, "-m", "ksmemu", *map(str, arguments)]
    env = os.environ | {"KSMEMU_DIR": str(ksmd.directory)}
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def numbers_of(page):
    """Return what the page holds for programs."""
    _, _, rest = page.partition('<script type="application/json" id="numbers">')
    return json.loads(rest.partition("</script>")[0])


class Seen(html.parser.HTMLParser):
    """What a page shows, and what it would load."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.loaded, self.tags = [], [], Counter()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            if name.rpartition(":")[2] in ("src", "href", "data") and not value.startswith(("#", "data:")):
                self.loaded.append(value)

    def handle_data(self, text):
        self.texts.append(text)


@pytest.fixture
def three(start_stepped):
    """Three workers of a ksmd at rest: 7 contents of all, 4 of the first two, 5 zero pages, 1 alone, each."""
    ksmd = start_stepped(use_zero_pages=1)
    workers = [Worker(ksmd.directory) for _ in range(3)]
    spaces = [worker.call(crew.open_space, 23) for worker in workers]
    for number, worker in enumerate(workers):
        worker.call(crew.put, 0, range(1, 8))
        worker.call(crew.put, 8, range(11, 15) if number < 2 else range(21, 25))
        worker.call(crew.put, 13, [0] * 5 + [100 + number])
    ksmd.scan(2)
    yield ksmd, spaces
    for worker in workers:
        worker.close()


def test_the_numbers_are_the_counters_and_a_recount(three, tmp_path):
    ksmd, spaces = three
    ran = ksmemu(ksmd, "report", "--seconds", "0.1", tmp_path / "a.html")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{tmp_path}/a.html\n", "")
    page = (tmp_path / "a.html").read_text()
    found, counters = numbers_of(page), ksmd.counters()
    scans = counters.pop("full_scans")
    assert found["full_scans"] == scans
    assert found["counters"] == counters | ksmd.stats()
    assert found["recount"] == {
        "pages_shared": counters["pages_shared"],
        "pages_sharing": counters["pages_sharing"],
        "ksm_zero_pages": counters["ksm_zero_pages"],
        "pages_own": counters["pages_unshared"],
        "pages_volatile": counters["pages_volatile"],
        "pages_merged": counters["pages_shared"] + counters["pages_sharing"],
        "pages_zero": 15,
        "pages_broken": 0,
    }
    recount = procmaps.recount(spaces)
    assert (len(recount.frames), recount.frames.total()) == (7 + 4, 3 * 7 + 2 * 4)
    assert found["recount"]["pages_merged"] == recount.frames.total()
    assert found["saved_bytes"] == (recount.frames.total() - len(recount.frames) + 15) * PAGE_SIZE
    by_pid = dict(zip([pid for pid, _ in found["workers"]], range(3), strict=True))
    one, two, three_ = (by_pid[pid] for pid, _, _ in spaces)
    matrix = found["matrix"]
    assert [matrix[at][at] for at in (one, two, three_)] == [11, 11, 7]
    assert (matrix[one][two], matrix[two][one], matrix[one][three_], matrix[three_][two]) == (11, 11, 7, 7)

    seen = Seen(page)
    assert (seen.loaded, seen.tags["svg"], seen.tags["img"]) == ([], 6, 3)
    text = " ".join(seen.texts)
    assert f"{report.size(found['saved_bytes'])} saved" in text
    assert "11 frames" in text
    for pid, start, end in spaces:
        assert f"{pid} python" in text
        assert f"[{start:#x}, {end:#x})" in text


def test_a_recorded_run_is_reported_when_ksmd_has_gone(three, tmp_path):
    ksmd, spaces = three
    record = tmp_path / "run"
    assert ksmemu(ksmd, "watch", "--record", record, "0.01", "7").returncode == 0
    sharing_now = ksmd.read("pages_sharing")
    ksmd.stop()
    for name in ("b.html", "b.png"):
        ran = ksmemu(ksmd, "report", "--from", record, tmp_path / name)
        assert (ran.returncode, ran.stderr) == (0, "")
    page = (tmp_path / "b.html").read_text()
    assert "7 samples" in page
    assert numbers_of(page)["counters"]["pages_sharing"] == sharing_now
    assert numbers_of(page)["recount"]["pages_sharing"] == sharing_now
    assert f"{spaces[0][0]} python" in page
    assert (tmp_path / "b.png").read_bytes().startswith(PNG)


def test_an_instance_that_nobody_has_joined_has_a_report_too(ksmd, tmp_path):
    assert ksmemu(ksmd, "report", "--seconds", "0.1", tmp_path / "none.html").returncode == 0
    assert "No process has advised any memory" in (tmp_path / "none.html").read_text()


# ---- the counting, against a plain recount ---------------------------------------------------------


def space(pid, domain, looks, frames, first_chunk=0):
    nr = -(-len(looks) // CHUNK)
    columns = np.zeros(nr * CHUNK, np.uint8), np.full(nr * CHUNK, NO_FRAME, np.uint32)
    columns[0][: len(looks)], columns[1][: len(frames)] = looks, frames
    end = (first_chunk + nr) * CHUNK * PAGE_SIZE
    return PageMap(pid, domain, 0, end, np.arange(first_chunk, first_chunk + nr), *columns)


def random_spaces(seed):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(7):
        looks = rng.integers(len(Look), size=1009).astype(np.uint8)
        frames = np.where(np.isin(looks, [Look.MERGED, Look.BROKEN]), rng.integers(97, size=1009), NO_FRAME)
        made.append(space(number // 2, "0" if number < 5 else "0-x", looks, frames, number))
    return made


def test_who_shares_with_whom_equals_a_plain_recount():
    spaces = random_spaces(11)
    shown = {worker: set() for worker in sharing.workers(spaces)}
    named = Counter()
    for one in spaces:
        frames = [(one.domain, frame) for frame in one.frames.tolist() if frame != NO_FRAME]
        shown[one.pid, one.domain] |= set(frames)
        named.update(frames)
    wanted = [[len(a & b) for b in shown.values()] for a in shown.values()]
    assert sharing.matrix(spaces).tolist() == wanted
    assert sorted(sharing.sharers(spaces).tolist()) == sorted(named.values())


def test_the_matrix_is_the_same_however_many_frames_are_taken_at_once(monkeypatch):
    whole = sharing.matrix(random_spaces(13))
    monkeypatch.setattr(sharing, "_FRAMES_AT_ONCE", 5)
    assert (sharing.matrix(random_spaces(13)) == whole).all()


def test_runs_are_neighbours_that_show_neighbours_or_one_frame():
    m, o = Look.MERGED, Look.OWN
    one = space(1, "0", [m, m, m, o, m, m, m, m, o, m], [5, 6, 9, NO_FRAME, 1, 1, 1, 2, NO_FRAME, 3])
    assert sharing.run_lengths([one]).tolist() == [2, 1, 4, 1]
    assert sharing.run_lengths([]).tolist() == []
    highest, counts = sharing.by_power(np.array([1, 1, 2, 3, 4, 5, 8, 9]))
    assert (highest, counts.tolist()) == ([1, 2, 4, 8, 16], [2, 1, 2, 2, 1])


def test_cells_have_the_look_of_most_of_their_data():
    looks = [Look.OWN, Look.OWN, Look.MERGED, Look.ABSENT, Look.ABSENT, Look.ZERO] + [Look.BROKEN] * 3
    found, pages_a_cell = cells(space(1, "0", looks, [], 1), 2 * CHUNK // 3)
    assert pages_a_cell == 4  # 1024 pages, 341 cells
    assert len(found) == 256
    at = CHUNK // 4
    assert found[at : at + 4].tolist() == [Look.OWN, Look.BROKEN, Look.BROKEN, Look.ABSENT]
    assert not found[:at].any()


def drawn(_state, path):
    """Draw a run with many spaces; return the page and how many spaces it leaves out."""
    spaces = random_spaces(3) + [space(100 + n, "0", [Look.MERGED] * 3, [1, 2, 3]) for n in range(43)]
    figures = {"full_scans": 1, "seconds": 2.0, "cpu_seconds": 1.0, "domains": {}, "workers": []}
    run = Run([Sample(100.0, figures)], PageMaps(spaces, []), {100: "<script>alert(1)</script>"})
    report.png(run, "many", path)
    return report.html(run, "<b>"), len(spaces) - report.MOST_SPACES


def test_a_name_is_shown_as_text_and_a_large_crew_is_drawn(tmp_path):
    with Worker() as artist:  # matplotlib keeps fonts open
        page, nr_left_out = artist.call(drawn, tmp_path / "many.png")
    assert Seen(page).tags["script"] == 1
    assert Seen(page).tags["b"] == Seen(page).tags["img"] == report.MOST_SPACES
    assert f"{nr_left_out} more spaces" in page
    assert (tmp_path / "many.png").read_bytes().startswith(PNG)


# ---- wrong input -----------------------------------------------------------------------------------


def written(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "no record\n",
        "{}\n",
        f'{{"format": "{FORMAT}"}}\n',
        f'{{"format": "{FORMAT}"}}\n{{"at": 1}}\n',
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="no record"):
        read(written(tmp_path / "record", text))


def test_a_record_without_a_sample_is_refused(tmp_path):
    maps = base64.b85encode(zlib.compress(encode({"spaces": [], "contents": []}, []))).decode()
    lines = [{"format": FORMAT}, {"maps": maps, "names": {}}]
    with pytest.raises(ValueError, match="holds no sample"):
        read(written(tmp_path / "record", "\n".join(map(json.dumps, lines))))


def said_to(capsys, *arguments):
    """Run a command here; return the exit status and what it said to whom."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a.txt"], "must end in .html or .png"),
        (["--from", "text", "a.html"], "no record"),
        (["--from", "nothing", "a.html"], "does not exist"),
        (["--seconds", "0", "a.html"], "0.0 is not in the range"),
        ([], "Missing argument"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(monkeypatch, tmp_path, capsys, arguments, part):
    written(tmp_path / "text", "text\n")
    monkeypatch.chdir(tmp_path)
    status, out, err = said_to(capsys, "report", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert part in err
    assert os.listdir() == ["text"]


def test_what_is_not_installed_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name, module in (("a.html", "jinja2"), ("a.png", "matplotlib")):
        with monkeypatch.context() as hidden:
            hidden.setitem(sys.modules, module, None)
            status, out, err = said_to(capsys, "report", name)
        wanted = f"ksmemu report: {module} is missing: pip install 'ksmemu[report]'\n"
        assert (status, out, err) == (2, "", wanted)


def test_no_folder_is_one_line_and_status_1(ksmd, tmp_path):
    for arguments in (["report", "--seconds", "0.1", "none/a.html"], ["watch", "--record", "none/run"]):
        ran = ksmemu(ksmd, *arguments, cwd=tmp_path)
        assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), ran.stderr
