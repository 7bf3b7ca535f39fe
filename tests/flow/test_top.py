"""`ksmemu top` on a screen of its own: what it shows is what real workers have."""

import asyncio
import os
import subprocess
import sys

import pytest
from textual.widgets import DataTable

from ksmemu.cli import main
from ksmemu.cli.output import size
from ksmemu.instance import Instance
from ksmemu.units import PAGE_SIZE
from ksmemu.view import screen
from ksmemu.view.cells import LETTERS
from ksmemu.view.screen import PageMapView, Screen
from tests.support import crew
from tests.support.processes import DEADLINE, Worker
from tests.support.terminal import Terminal

NR_PAGES = 23


@pytest.fixture(autouse=True)
def each_look_is_new(monkeypatch):
    monkeypatch.setattr(screen, "MAP_SHARE", 0)


def on_screen(ksmd, story, size=(80, 24), interval=3600.0):
    """Run a story(screen, pilot) on a screen that has looked once."""

    async def told():
        screen = Screen(Instance.resolve(ksmd.directory), interval)
        async with screen.run_test(size=size) as pilot:
            await settled(screen, pilot)
            return await story(screen, pilot)

    return asyncio.run(asyncio.wait_for(told(), DEADLINE))


async def settled(screen, pilot):
    """Wait until what was asked is shown; to show it may be to ask for more."""
    await pilot.pause()
    while any(not worker.is_finished for worker in screen.workers):
        await pilot.pause(0.01)
    await pilot.pause()


async def look_again(screen, pilot):
    screen.look()
    await settled(screen, pilot)


def shown(screen):
    """Return the lines on the screen."""
    width, height = screen.size
    strips = screen.screen._compositor.render_strips()
    lines = [strip.text for strip in strips]
    assert len(lines) == height
    assert {len(line) for line in lines} == {width}
    return lines


def map_of(screen):
    """Return the page map that is drawn, a letter a page."""
    text = screen.query_one(PageMapView).render().plain.replace("\n", "")
    return text.translate(str.maketrans("".join(LETTERS.values()), ".ovMZb"))


def rows_of(screen):
    table = screen.query_one(DataTable)
    return [[cell.plain for cell in table.get_row_at(at)] for at in range(table.row_count)]


@pytest.fixture
def pair(stepped):
    """Two workers of a ksmd at rest, by pid: 7 contents of both, and the second has 2 more."""
    workers = sorted((Worker(stepped.directory) for _ in range(2)), key=lambda worker: worker.pid)
    for worker in workers:
        worker.call(crew.open_space, NR_PAGES)
        worker.call(crew.put, 0, range(1, 8))
    workers[1].call(crew.put, 11, [101, 102])
    stepped.scan(2)
    yield stepped, workers
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("size_", [(80, 24), (200, 50)])
def test_saved_memory_comes_first_then_the_workers_then_a_page_map(pair, size_):
    ksmd, (one, two) = pair

    async def story(screen, _pilot):
        lines = shown(screen)
        assert lines[0].split("   ")[0].strip() == f"{size(7 * PAGE_SIZE)} saved"
        text = "\n".join(lines)
        for name in ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "full_scans"):
            assert f"{name} {ksmd.read(name)}" in text
        assert rows_of(screen) == [
            [str(one.pid), "python", str(os.geteuid()), "1", "28.0 KiB", "7", "0", "0", "0"],
            [str(two.pid), "python", str(os.geteuid()), "1", "36.0 KiB", "7", "0", "2", "0"],
        ]
        assert map_of(screen) == "M" * 7 + "." * 16
        assert f"pid {one.pid}: " in text
        assert "absent 16  " in text
        assert "X broken 0" in text
        assert "q Quit" in text

    on_screen(ksmd, story, size_)


def open_another(state, nr_pages):
    state.kept = state.space
    return state.space.start, crew.open_space(state, nr_pages)[1]


def test_keys_select_a_process_and_its_spaces(pair):
    ksmd, (_, two) = pair
    first, second = two.call(open_another, 11)
    two.call(crew.put, 2, [7])

    async def story(screen, pilot):
        await pilot.press("down")
        await settled(screen, pilot)
        seen = {}
        for _ in range(3):
            seen[screen.query_one(PageMapView).space.start] = map_of(screen)
            await pilot.press("s")
            await settled(screen, pilot)
        assert seen == {first: "M" * 7 + "." * 4 + "oo" + "." * 10, second: "..o" + "." * 8}

    on_screen(ksmd, story)


def test_a_write_to_a_merged_page_shows_before_any_scan(pair):
    ksmd, (one, _) = pair

    async def story(screen, pilot):
        one.call(crew.put, 3, [77])
        await look_again(screen, pilot)
        assert map_of(screen) == "MMMbMMM" + "." * 16
        assert "broken 1" in "\n".join(shown(screen))

    on_screen(ksmd, story)


def test_workers_come_and_go(pair):
    ksmd, (one, two) = pair

    async def story(screen, pilot):
        one.close()
        for _ in range(2):
            await look_again(screen, pilot)
        assert [row[0] for row in rows_of(screen)] == [str(two.pid)]
        assert screen.query_one(PageMapView).space.pid == two.pid
        with Worker(ksmd.directory) as third:
            third.call(crew.open_space, 5)
            await look_again(screen, pilot)
            assert [row[0] for row in rows_of(screen)] == [str(two.pid), str(third.pid)]

    on_screen(ksmd, story)


def test_a_column_grows_with_its_figures(ksmd):
    async def story(screen, pilot):
        worker.call(crew.put, 0, range(1, 12))
        ksmd.wait_full_scans(2)
        await look_again(screen, pilot)
        (row,) = rows_of(screen)
        assert "44.0 KiB" in row
        head, line = (line for line in shown(screen) if "DATA" in line or "44.0 KiB" in line)
        assert line.split() == " ".join(row).split()
        assert head.index("DATA") + len("DATA") == line.index("44.0 KiB") + len("44.0 KiB")

    with Worker(ksmd.directory) as worker:
        worker.call(crew.open_space, NR_PAGES)
        worker.call(crew.put, 0, [1])
        on_screen(ksmd, story)


def test_nobody_is_there_and_then_ksmd_has_gone(ksmd):
    async def story(screen, pilot):
        assert "no address space" in map_of(screen)
        ksmd.stop()
        await look_again(screen, pilot)
        return screen

    assert "no ksmd" in str(on_screen(ksmd, story).failure)


def test_in_a_terminal_q_ends_it(ksmd):
    """Also without colours, and on a terminal that says little of itself."""
    command = [sys.executable, "-m", "ksmemu", "top", "--dir", str(ksmd.directory)]
    with Terminal(command, TERM="vt100", NO_COLOR="1") as terminal:
        terminal.until(b"saved")
        terminal.press(b"q")
        assert terminal.status() == 0


# ---- wrong input -----------------------------------------------------------------------------------


def test_wrong_input_is_one_line_and_status_2(ksmd):
    for arguments, part in ((["0"], "0.0 is not in the range"), (["x"], "'x'"), ([], "watch")):
        command = [sys.executable, "-m", "ksmemu", "top", "--dir", str(ksmd.directory), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
        assert part in ran.stderr


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "textual", None)
    with pytest.raises(SystemExit) as ended:
        main(["top"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "ksmemu top: textual is missing: pip install 'ksmemu[tui]'\n"
