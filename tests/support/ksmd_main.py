"""A ksmd with one protecting step taken out, named by KSMEMU_BREAK: start_ksmd(broken=…, module=…)."""

# ruff: noqa: PLC0415 - the core may be replaced, before ksmemu is imported
import os

from tests.support import breaks


def release_at_break():
    """A reference is given back when a page is found broken, not when it is home again."""
    from ksmemu.ksmd import harvest, rehome
    from ksmemu.ksmd.domain import Domain
    from ksmemu.ksmd.place import places
    from ksmemu.ksmd.rmap import State

    forget = Domain.forget

    def let_go(domain, slot, pages):
        domain.pool.release(slot.rmap.tag[pages], places(slot.id, pages))
        slot.rmap.move(pages, State.WRITTEN)

    def forget_and_let_go(domain, *where):
        forget(domain, *where)
        for slot in domain.slots.values():
            for stretch in slot.rmap.stretches(0, slot.nr_pages):
                let_go(domain, slot, harvest.find_broken(slot, stretch))

    rehome.order = rehome.renew = let_go
    Domain.forget = forget_and_let_go


def hand_out_writable_pool():
    """Workers get the descriptor with which ksmd itself writes."""
    from ksmemu.ksmd.pool import Pool

    Pool.read_only = lambda pool: pool._fd


def free_what_nobody_has_named():
    """A ksmd that takes over asks nobody who else may map frames."""
    from ksmemu.ksmd import holders

    holders.living = lambda _: set()


def forget_to_count_releases():
    """A frame that is released stays in the count of used ones."""
    from ksmemu.ksmd.pool import Pool

    release = Pool.release

    def release_uncounted(pool, frames, where):
        before = pool.nr_used
        release(pool, frames, where)
        pool.nr_used = before

    Pool.release = release_uncounted


def keep_frames_of_the_dead():
    """The death of a worker releases nothing."""
    from ksmemu.ksmd import connection

    connection.reap = lambda domain, worker: domain.workers.remove(worker)


def share_one_frame_after_the_other():
    """Equal neighbours get the same frame until it is full: there are no ladders."""
    from ksmemu.ksmd.ladder import Ladders

    Ladders.raise_for = lambda *_: None


def keep_a_kernel_item_for_each_page():
    """Each page that is tracked costs 64 bytes more (sizeof(struct ksm_rmap_item))."""
    from ksmemu.ksmd.rmap import Rmap

    track, items = Rmap.track, []

    def track_with_items(rmap, pages, state):
        items.append(b"item" * 16 * len(pages))
        track(rmap, pages, state)

    Rmap.track = track_with_items


def end_at_an_event():
    """Whoever gathers an event ends ksmd."""
    from ksmemu.ksmd.events import FIELDS, Events, Trace

    def end(*_):
        raise AssertionError("an event was gathered")

    tracepoints = {(kind, name) for kind in (Events, Trace) for name in vars(kind) if f"ksm_{name}" in FIELDS}
    assert {name for _, name in tracepoints} == {"start_scan", "stop_scan", "enter", "exit", "advisor"}
    for kind, name in {*tracepoints, (Events, "merge"), (Events, "remove")}:
        setattr(kind, name, end)


def explain_merged_pages_as_unique():
    """What shares a frame is said to have no equal."""
    from ksmemu.control.reasons import Reason
    from ksmemu.ksmd import explain
    from ksmemu.ksmd.rmap import State

    explain._BY_STATE[State.MERGED] = Reason.UNIQUE


def put_all_in_one_domain():
    """Whoever a worker is, and whatever label it names, it is in the domain of uid 0."""
    from ksmemu.domain_key import Key
    from ksmemu.ksmd import connection, handed

    connection.Key = lambda *_: Key(0)
    handed.check_object = lambda *_: None


def tell_and_take_everything():
    """Everybody is told of all domains, files have the usual modes, and any object is somebody's own."""
    from ksmemu.ksmd import handed, question
    from ksmemu.ksmd.domains import Domains

    os.umask = lambda _: 0
    handed.check_object = lambda *_: None
    Domains.seen_by = lambda domains, _uid: list(domains)
    question._others = lambda domains, domain: (other for other in domains if other is not domain)


def hoard_what_was_closed():
    """A space that is closed keeps its descriptor, and some memory."""
    from ksmemu.ksmd.mm_slot import MmSlot

    hoard = []
    MmSlot.close = lambda _: hoard.append(bytearray(1 << 15))


STEPS = {
    "careless": tell_and_take_everything,
    "domain": put_all_in_one_domain,
    "explain": explain_merged_pages_as_unique,
    "reference": release_at_break,
    "read-only": hand_out_writable_pool,
    "holders": free_what_nobody_has_named,
    "count": forget_to_count_releases,
    "reap": keep_frames_of_the_dead,
    "lean": keep_a_kernel_item_for_each_page,
    "events": end_at_an_event,
    "hoard": hoard_what_was_closed,
    "ladder": share_one_frame_after_the_other,
}


def main():
    step = os.environ["KSMEMU_BREAK"]
    breaks.load(step)
    from ksmemu.ksmd.__main__ import main as product

    if step in STEPS:
        STEPS[step]()
    else:
        assert step in breaks.CORE_STEPS, f"no step {step!r}"
    product()


if __name__ == "__main__":
    main()
