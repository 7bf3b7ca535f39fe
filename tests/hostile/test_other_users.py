"""One ksmd of root's serves several users: what none of them can do to another, or learn of him."""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import ksmemu
from ksmemu import KsmError, wire
from ksmemu.cli import commands
from ksmemu.control import launch
from ksmemu.control.explain import explain
from ksmemu.control.figures import figures
from ksmemu.control.ksmd import RunningKsmd
from ksmemu.control.page_map import page_maps
from ksmemu.instance import Instance
from ksmemu.wire import ReportKind
from tests.support import attacks, books, crew, domains, fakes, procmaps
from tests.support.books import Member
from tests.support.fakes import PAGE, FakeWorker
from tests.support.processes import Worker
from tests.support.users import ALICE, BOB, SERVICE, UserWorker, become, common_folder, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

NR_PAGES = 23
FILLED = list(range(1, NR_PAGES + 1))
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1, "smart_scan": 0}


@pytest.fixture(scope="module")
def ksmd():
    """A ksmd of root's that serves everybody, for all tests of the module."""
    with common_folder() as folder, ksmemu.Ksmd(folder / "ksmd", all_users=True, **FAST) as ksmd:
        yield ksmd


@pytest.fixture(scope="module")
def members(ksmd):
    """Two workers of Alice's and two of Bob's, all with the same pages."""
    with contextlib.ExitStack() as undo:
        found = {}
        for uid in (ALICE, BOB):
            workers = [undo.enter_context(UserWorker(uid, ksmd.directory)) for _ in range(2)]
            found[str(uid)] = [Member.join(worker, NR_PAGES) for worker in workers]
            for member in found[str(uid)]:
                member.call(crew.put, 0, FILLED)
        wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
        yield found


@pytest.fixture(autouse=True)
def everybody_is_served_on(ksmd, members):
    """Whatever a test does, both users' bytes are right, and the books of each agree with the mappings."""
    yield
    wait_until(lambda: domains.names(ksmd) == set(members), what="the end of other domains")
    wait_until(lambda: ksmd.read("workers") == 4, what="the end of other workers")
    wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
    domains.check(ksmd, members)
    for there in members.values():
        assert all(member.call(crew.differing, 0, FILLED) == [] for member in there)


@pytest.fixture(scope="module")
def mallory(ksmd):
    """A further process of Bob's, without an address space."""
    with UserWorker(BOB, ksmd.directory) as worker:
        yield worker


@pytest.fixture
def garbler(ksmd):
    """The same for a test after which ksmd hears nothing more of it, and that has to end."""
    with UserWorker(BOB, ksmd.directory) as worker:
        yield worker


def log_of(ksmd):
    return (ksmd.directory / "ksmd.log").read_text()


# ---- what he can learn -----------------------------------------------------------------------------


def test_equal_pages_of_two_users_do_not_merge(ksmd, members):
    """The fixture says it: the sum is 2 * NR_PAGES, and not 3."""
    pools = {name: there[0].call(crew_pool) for name, there in members.items()}
    assert len(set(pools.values())) == 2


def crew_pool(state):
    return os.fstat(crew.pool_descriptor(state.space)).st_ino


def files_below(_state, directory):
    """Return the files that this user can read, and the folders that he can list."""
    found = []
    for folder, names, files in os.walk(directory):
        found += [os.path.join(folder, name) for name in (*names, *files)]
    readable = []
    for path in [*found, *[str(Path(directory, name)) for name in KNOWN]]:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            readable.append(path)
    return readable


KNOWN = [
    "ksmd.log",
    "ksmd.pid",
    "sys/kernel/mm/ksm/pages_sharing",
    "sys/kernel/mm/ksm/merge_pid",
    "sys/kernel/tracing/events/ksm/enable",
    "sys/kernel/tracing/trace",
    "stats/merges",
    f"stats/domains/{BOB}/pages_sharing",
    "proc",
]


def test_no_figure_of_the_instance_can_be_read(ksmd, members, mallory):
    pids = [member.worker.pid for there in members.values() for member in there]
    assert all((ksmd.directory / f"proc/{pid}/ksm_stat").exists() for pid in pids)
    assert mallory.call(files_below, str(ksmd.directory)) == []


def own_figures(_state):
    return figures(Instance.resolve())


def said_by_status(_state, *options):
    result = CliRunner().invoke(commands, ["status", *options])
    return result.exit_code, result.output


def test_a_user_is_told_the_figures_of_his_own_domains_only(members, mallory):
    assert list(mallory.call(own_figures)["domains"]) == [str(BOB)]
    assert mallory.call(own_figures)["domains"][str(BOB)]["pages_sharing"] == NR_PAGES
    status, said = mallory.call(said_by_status)
    assert status == 0
    assert f"domain {BOB}\n" in said
    assert str(ALICE) not in said
    status, said = mallory.call(said_by_status, "--json")
    assert json.loads(said)["saved_bytes"] == NR_PAGES * PAGE
    assert list(json.loads(said)["domains"]) == [str(BOB)]


def test_root_is_told_of_all(ksmd, members):
    assert set(figures(Instance.resolve(ksmd.directory))["domains"]) == set(members)


def explained(_state, pid=None, address=None):
    try:
        return explain(Instance.resolve(), pid, address)
    except KsmError as error:
        return error.errno, error.strerror


def test_explain_answers_about_ones_own_processes_only(members, mallory):
    theirs, own = (members[str(uid)][0].worker.pid for uid in (ALICE, BOB))
    address = members[str(ALICE)][0].space[1]
    silence = (errno.ESRCH, mallory.call(explained, 1)[1].replace("pid 1 ", f"pid {theirs} "))
    assert mallory.call(explained, theirs) == mallory.call(explained, theirs, address) == silence
    assert [worker["pid"] for worker in mallory.call(explained, own)["workers"]] == [own]
    everyone = {worker["pid"] for worker in mallory.call(explained)["workers"]}
    assert everyone == {member.worker.pid for member in members[str(BOB)]}


def own_page_maps(_state, *which):
    try:
        found = page_maps(Instance.resolve(), *which)
    except KsmError as error:
        return error.errno
    domains = {space.domain for space in found.spaces} | {one["domain"] for one in found.contents}
    return {space.pid for space in found.spaces}, domains


def test_page_maps_and_contents_are_of_ones_own_domains_only(members, mallory):
    there = members[str(ALICE)][0]
    assert mallory.call(own_page_maps) == ({one.worker.pid for one in members[str(BOB)]}, {str(BOB)})
    assert mallory.call(own_page_maps, there.worker.pid) == errno.ESRCH
    assert mallory.call(own_page_maps, there.worker.pid, there.space[1]) == errno.ESRCH
    assert {one["pid"] for one in mallory.call(own_figures)["workers"]} == mallory.call(own_page_maps)[0]


def test_explain_does_not_say_that_another_user_has_an_equal_page(ksmd, members):
    """A page of Carol's that Alice and Bob have too is unique to her."""
    with UserWorker(ALICE + 100, ksmd.directory) as carols:
        carol = Member.join(carols, 3)
        carol.call(crew.put, 0, [1, 2, 9999])
        wait_until(lambda: ksmd.read("pages_unshared") == 3, what="her pages to wait")
        assert carol.call(explained)["workers"][0]["totals"] == {"unique": 3}
        assert carol.call(own_figures)["domains"].keys() == {str(ALICE + 100)}


# ---- what he can do to memory ----------------------------------------------------------------------


def chmod_the_pool(state, frame):
    """Give himself what ksmd has taken from everybody."""
    pool = crew.pool_descriptor(state.space)
    return attacks._succeeds(lambda: os.fchmod(pool, 0o666))


@pytest.mark.parametrize("attack", [*attacks.ATTACKS, chmod_the_pool], ids=lambda attack: attack.__name__)
def test_no_frame_is_writable_by_a_user_of_it(attack, members):
    assert not members[str(BOB)][0].call(attack, 0)


def objects_of(_state, pid):
    """Return the descriptors of a process that this one can open, and whether it can trace it."""
    opened = []
    for number in range(256):
        with contextlib.suppress(OSError):
            opened.append(os.close(os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY)))
    return opened


def test_no_object_of_another_user_or_of_ksmd_can_be_opened(ksmd, members, mallory):
    for pid in (ksmd.pid, members[str(ALICE)][0].worker.pid):
        assert mallory.call(objects_of, pid) == []


def is_cut_off_for(state, kind):
    """In a worker: report of a space that is somebody else's."""
    with FakeWorker(state.directory) as fake:
        fake.report(wire.ReportKind[kind], state.space_id, (0, 1, 0))
        return fake.is_cut_off()


def aim_at(state, directory, space_id):
    state.directory, state.space_id = directory, space_id


def test_memory_of_another_user_cannot_be_advised_or_taken_away(ksmd, garbler):
    kinds = [kind for kind in wire.ReportKind.__members__ if kind != "OUTCOME"]
    for space_id in range(1, 5):  # those of the members, as ksmd counts them
        garbler.call(aim_at, str(ksmd.directory), space_id)
        assert all(garbler.call(is_cut_off_for, kind) for kind in kinds)


# ---- what he can say -------------------------------------------------------------------------------


def says_who_he_is_not(state, directory, pid, uid):
    """Say hello with another's ids in it; return the domain that ksmd has put him in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.connect(f"{directory}/ksmd.sock")
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        hello = {"hello": wire.VERSION, "pid": pid, "uid": uid, "domain": ""}
        wire.send_control(control, hello, (theirs.fileno(), pagemap))
        _, fds = wire.receive_control(control)
        found = figures(Instance.resolve())["domains"]
        for fd in (*fds, pagemap):
            os.close(fd)
        ours.close()
        theirs.close()
        return {name: counters["workers"] for name, counters in found.items()}


def test_pid_and_user_are_the_sockets_and_not_what_he_says(ksmd, members, mallory):
    pid = members[str(ALICE)][0].worker.pid
    assert mallory.call(says_who_he_is_not, str(ksmd.directory), pid, ALICE) == {str(BOB): 3}


def test_a_label_that_looks_like_another_user_is_one_of_his_own(ksmd, members):
    with UserWorker(BOB, ksmd.directory) as worker:
        one = Member.join(worker, NR_PAGES, f"{ALICE}")
        one.call(crew.put, 0, FILLED)
        wait_until(lambda: ksmd.read("pages_unshared") == NR_PAGES, what="his pages to wait")
        assert domains.names(ksmd) == {*members, f"{BOB}-{ALICE}"}


def test_who_changes_his_user_has_new_memory_in_the_new_ones_domain(ksmd):
    """A space of before stays with the user who made it; what comes later is the new user's."""
    with Worker(ksmd.directory) as worker:
        worker.call(crew.open_space, NR_PAGES)
        worker.call(keep_space)
        worker.call(become, ALICE + 300)
        worker.call(crew.open_space, NR_PAGES)
        wait_until(lambda: domains.names(ksmd) >= {"0", str(ALICE + 300)}, what="both domains")
        for domain in ("0", str(ALICE + 300)):
            wait_until(lambda name=domain: domains.read(ksmd, name, "spaces") == 1, what="its space")


def keep_space(state):
    state.before = state.space


def hands_over(state, directory, what):
    """Register an object as his own; return what ksmd says."""
    with FakeWorker(directory) as fake:
        fd = what()
        body = {"space": {"id": 1, "start": 0x10000000, "size": PAGE}}
        wire.send_control(fake.control, body, (fd,))
        os.close(fd)
        try:
            return wire.receive_control(fake.control)[0]
        except (EOFError, ConnectionError):
            return None


def a_file_that_all_can_read():
    return os.open(sys.executable, os.O_RDONLY)


def an_object_of_anothers():
    return os.open("/dev/shm/ksmemu-test-of-root", os.O_RDONLY)


def a_fifo():
    read, write = os.pipe()
    os.close(write)
    return read


def his_own():
    fd = os.memfd_create("own")
    os.truncate(fd, PAGE)
    return fd


@pytest.fixture
def object_of_root():
    """Shared memory of root's that everybody may read."""
    path = Path("/dev/shm/ksmemu-test-of-root")
    path.write_bytes(bytes(PAGE))
    path.chmod(0o644)
    yield
    path.unlink()


def test_ksmd_reads_nothing_that_is_not_his_own_memory(ksmd, garbler, object_of_root):
    for number, what in enumerate((a_file_that_all_can_read, an_object_of_anothers, a_fifo), 1):
        assert garbler.call(hands_over, str(ksmd.directory), what) is None
        assert log_of(ksmd).count(f"pid {garbler.pid} is cut off: an own object") == number


def test_what_is_his_own_memory_is_taken(ksmd, garbler):
    assert garbler.call(hands_over, str(ksmd.directory), his_own) == {}


def hands_over_a_pool(state, directory):
    pool = os.dup(crew.pool_descriptor(state.space))
    return hands_over(state, directory, lambda: pool)


def test_a_pool_is_no_ones_own_object(ksmd, garbler):
    member = Member.join(garbler, NR_PAGES)
    member.call(crew.put, 0, FILLED)
    wait_until(lambda: ksmd.read("pages_sharing") == 3 * NR_PAGES, what="merging")
    assert member.call(hands_over_a_pool, str(ksmd.directory)) is None


# ---- merge_pid -------------------------------------------------------------------------------------


def stores(_state, directory, name):
    try:
        Path(directory, "sys/kernel/mm/ksm", name).write_text("1\n")
    except OSError as error:
        return error.errno
    return 0


def test_only_who_runs_ksmd_can_store(ksmd, mallory):
    for name in ("merge_pid", "unmerge_pid", "run", "use_zero_pages"):
        assert mallory.call(stores, str(ksmd.directory), name) == errno.EACCES


def test_root_can_name_a_process_of_any_user_and_the_log_says_so(ksmd):
    with UserWorker(ALICE + 200, ksmd.directory) as worker:
        worker.call(crew.open_ordinary_space, NR_PAGES)
        worker.call(crew.put, 0, FILLED)
        ksmd.write("merge_pid", worker.pid)
        wait_until(lambda: str(ALICE + 200) in domains.names(ksmd), what="the process to join")
        ksmd.write("unmerge_pid", worker.pid)
        assert worker.call(crew.differing, 0, FILLED) == []
    assert f"merge_pid: pid {worker.pid} of uid {ALICE + 200} is to be merged" in log_of(ksmd)
    assert f"unmerge_pid: pid {worker.pid} of uid {ALICE + 200} is to be unmerged" in log_of(ksmd)
    wait_until(lambda: f"domain {ALICE + 200} ends" in log_of(ksmd), what="its end")


# ---- what he can use up ----------------------------------------------------------------------------


def connects(state, directory, number):
    """Connect so often, and say nothing."""
    state.idle = [fakes.connect(directory) for _ in range(number)]


def is_turned_away(_state, directory):
    with fakes.connect(directory) as control:
        return fakes.is_refused(control)


def registers_without_end(state, directory, most):
    """Register spaces until ksmd refuses one; return how many it took, and its errno."""
    fd = his_own()
    state.fake = FakeWorker(directory)
    for number in range(most):
        wire.send_control(
            state.fake.control, {"space": {"id": number, "start": 0x10000000, "size": PAGE}}, (fd,)
        )
        reply, _ = wire.receive_control(state.fake.control)
        if "errno" in reply:
            return number, reply["errno"]
    return most, 0


def test_a_user_cannot_use_up_the_descriptors_of_ksmd(ksmd, garbler):
    before = resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE, (400, before[1]))
    members, share = 2 * (4 + 1), 400 // 4
    try:
        garbler.call(connects, str(ksmd.directory), 41)
        taken, number = garbler.call(registers_without_end, str(ksmd.directory), 101)
        assert number == errno.EMFILE
        assert members + 41 + 4 + taken == share
        assert garbler.call(is_turned_away, str(ksmd.directory))
        with UserWorker(ALICE, ksmd.directory) as worker:
            assert worker.call(joins) == (0, "")
    finally:
        resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE, before)
    assert "a client of uid" in log_of(ksmd)


def forks_without_end(state, directory, nr_pages):
    """Fork, and show a page of each ancestor, until ksmd hangs up."""
    fake = state.fake = FakeWorker(directory)
    own = fake.own(bytes(nr_pages * PAGE))
    space = fake.register(own, nr_pages)
    with contextlib.suppress(OSError):
        for number in range(1, nr_pages):
            ancestor = fake.own(bytes(nr_pages * PAGE))
            whole = (0, nr_pages, 0, number)
            fake.report(ReportKind.FORKED, space, whole, order_id=number, fds=(own, ancestor))
            os.close(ancestor)
            fake.report(ReportKind.INHERITED, space, (number, 1, 0, number))
            fake.report(ReportKind.RESUMED, space)
    return fake.is_cut_off()


def test_nor_by_forks(ksmd, garbler):
    before = resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE, (400, before[1]))
    members, share, held = 2 * (4 + 1), 400 // 4, len(procmaps.descriptors(ksmd.pid))
    try:
        assert garbler.call(forks_without_end, str(ksmd.directory), 211)
        assert len(procmaps.descriptors(ksmd.pid)) == held + share - members
        with UserWorker(ALICE, ksmd.directory) as worker:
            assert worker.call(joins) == (0, "")
    finally:
        resource.prlimit(ksmd.pid, resource.RLIMIT_NOFILE, before)


# ---- a service user runs it ------------------------------------------------------------------------


def test_a_service_user_without_any_privilege_can_serve_others():
    with common_folder() as folder, UserWorker(SERVICE) as service:
        (folder / "ksmd").mkdir(mode=0o755)
        os.chown(folder / "ksmd", SERVICE, SERVICE)
        service.start(serve, str(folder / "ksmd"))
        wait_until((folder / "ksmd/ksmd.sock").exists, what="ksmd")
        ksmd = RunningKsmd(Instance.resolve(folder / "ksmd"), service.pid)
        with contextlib.ExitStack() as undo:
            undo.callback(ksmd.close)
            workers = [undo.enter_context(UserWorker(uid, ksmd.directory)) for uid in (ALICE, ALICE, BOB)]
            members = [Member.join(worker, NR_PAGES) for worker in workers]
            for member in members:
                member.call(crew.put, 0, FILLED)
            wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging")
            domains.check(ksmd, {str(ALICE): members[:2], str(BOB): members[2:]})
            assert all(member.call(crew.differing, 0, FILLED) == [] for member in members)
        service.kill(signal.SIGTERM)
        service.finish()


def test_the_next_ksmd_of_root_goes_on_with_every_user():
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(common_folder())
        ksmd = ksmemu.Ksmd(folder / "ksmd", all_users=True, **FAST)
        users = (ALICE, ALICE, BOB, BOB)
        workers = [undo.enter_context(UserWorker(uid, ksmd.directory)) for uid in users]
        members = [Member.join(worker, NR_PAGES) for worker in workers]
        for member in members:
            member.call(crew.put, 0, FILLED)
        wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
        before = books.recount(members).frames
        os.kill(ksmd.pid, signal.SIGKILL)
        ksmd.close()
        ksmd = undo.enter_context(ksmemu.Ksmd(folder / "ksmd", all_users=True, **FAST))
        ksmd.wait_full_scans(3)
        domains.check(ksmd, {str(ALICE): members[:2], str(BOB): members[2:]})
        assert books.recount(members).frames == before
        assert all(member.call(crew.differing, 0, FILLED) == [] for member in members)
        members[0].call(crew.advise, 0, 7, ksmemu.MADV_UNMERGEABLE)
        members[0].call(crew.advise, 0, 7, ksmemu.MADV_MERGEABLE)


# ---- the negative control --------------------------------------------------------------------------


def test_it_would_be_noticed_if_ksmd_told_and_took_everything(monkeypatch, object_of_root):
    monkeypatch.setenv("KSMEMU_BREAK", "careless")
    monkeypatch.setattr(launch, "MODULE", "tests.support.ksmd_main")
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(common_folder())
        ksmd = undo.enter_context(ksmemu.Ksmd(folder / "ksmd", all_users=True, **FAST))
        monkeypatch.delenv("KSMEMU_BREAK")
        workers = [undo.enter_context(UserWorker(uid, ksmd.directory)) for uid in (ALICE, BOB)]
        alice, bob = (Member.join(worker, NR_PAGES) for worker in workers)
        for member in (alice, bob):
            member.call(crew.put, 0, FILLED)
        wait_until(lambda: ksmd.read("pages_unshared") == 2 * NR_PAGES, what="all to wait")
        assert {str(ALICE), str(BOB)} == bob.call(own_figures)["domains"].keys()
        assert bob.call(explained, alice.worker.pid)["workers"][0]["totals"] == {"other domain": NR_PAGES}
        assert str(ksmd.directory / "stats/merges") in bob.call(files_below, str(ksmd.directory))
        for what in (a_file_that_all_can_read, an_object_of_anothers):
            assert bob.call(hands_over, str(ksmd.directory), what) == {}


# ---- users that nobody knows -----------------------------------------------------------------------

_START = """
import sys
import ksmemu
with ksmemu.Ksmd(sys.argv[1], all_users=True):
    print("ready", flush=True)
    sys.stdin.read()
"""


def joins(state):
    try:
        crew.open_space(state, 1)
    except KsmError as error:
        return error.errno, error.strerror
    return 0, ""


@pytest.fixture
def ksmd_of_a_namespace():
    """A ksmd in a user namespace that knows root, and nobody else."""
    with common_folder() as folder:
        command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", _START, folder / "ksmd"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            yield folder / "ksmd"
            process.stdin.close()


def test_users_whom_the_namespace_of_ksmd_does_not_know_are_not_taken_for_one(ksmd_of_a_namespace):
    for uid in (ALICE, BOB):
        with UserWorker(uid, ksmd_of_a_namespace) as worker:
            number, text = worker.call(joins)
            assert number == errno.EPERM
            assert "is not known" in text
