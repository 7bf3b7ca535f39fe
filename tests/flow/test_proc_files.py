"""proc/PID of an instance: the kernel's per-process files."""

import os
import stat

from tests.support.crew import fill_with, open_space, put
from tests.support.waiting import wait_until


def proc(ksmd, worker, name):
    file = ksmd.directory / "proc" / str(worker.pid) / name
    wait_until(file.exists)
    return file.read_text()


def test_ksm_stat_is_in_the_kernels_format_and_adds_up(ksmd, start_worker):
    first, second = start_worker(), start_worker()
    for worker in (first, second):
        worker.call(open_space, 97)
        worker.call(put, 0, range(1, 24))
    second.call(put, 23, range(1000, 1007))
    wait_until(lambda: ksmd.read("pages_sharing") == 23 and ksmd.read("pages_unshared") == 7)
    assert proc(ksmd, first, "ksm_stat") == (
        "ksm_rmap_items 23\n"
        "ksm_zero_pages 0\n"
        "ksm_merging_pages 23\n"
        f"ksm_process_profit {23 * 4096 - 23 * 64}\n"
        "ksm_merge_any: no\n"
        "ksm_mergeable: yes\n"
    )
    assert proc(ksmd, second, "ksm_merging_pages") == "23\n"
    assert "ksm_rmap_items 30\n" in proc(ksmd, second, "ksm_stat")


def test_zero_pages_are_counted_apart(ksmd, start_worker):
    ksmd.write("use_zero_pages", 1)
    worker = start_worker()
    worker.call(open_space, 13)
    worker.call(fill_with, 0, 13, 0)
    wait_until(lambda: ksmd.read("ksm_zero_pages") == 13)
    text = proc(ksmd, worker, "ksm_stat")
    assert "ksm_rmap_items 0\nksm_zero_pages 13\nksm_merging_pages 0\n" in text


def test_the_prctl_setting_is_shown(ksmd, start_worker):
    worker = start_worker()

    def set_merge(state, on):
        import ksmemu  # noqa: PLC0415 - in the worker

        ksmemu.set_memory_merge(on)

    worker.call(open_space, 13)
    worker.call(set_merge, True)
    wait_until(lambda: "ksm_merge_any: yes" in proc(ksmd, worker, "ksm_stat"))
    worker.call(set_merge, False)
    wait_until(lambda: "ksm_merge_any: no\nksm_mergeable: no" in proc(ksmd, worker, "ksm_stat"))


def test_the_files_are_for_their_owner_and_go_with_the_worker(ksmd, start_worker):
    worker = start_worker()
    worker.call(open_space, 13)
    folder = ksmd.directory / "proc" / str(worker.pid)
    wait_until((folder / "ksm_merging_pages").exists)  # the second of the two
    for name in ("ksm_stat", "ksm_merging_pages"):
        found = (folder / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o400, os.geteuid())
    worker.kill()
    wait_until(lambda: not folder.exists())
