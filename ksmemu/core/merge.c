/*
 * Step 4: freeze -> verify -> remap -> wake -> punch, or thaw. The one transaction that gives pages away.
 *
 *   track ──unregister──▶ (free) ──register──▶ freeze ──protect──▶ FROZEN
 *   FROZEN ──equal──▶ mmap(frames) ──▶ MERGED        FROZEN ──differs──▶ track ──▶ OWN, written
 *   wake: whoever slept faults again, on what is mapped now
 *
 * And renewal: the same for a copy of what was MERGED, which is dropped where the frame still lies under it.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core.h"
#include "freeze.h"
#include "uapi.h"

static const unsigned char zeros[KSMEMU_PAGE_SIZE];

/* Where the application may not read (mprotect) /proc/self/mem does: that costs some system calls a page. */
static bool is_equal(uintptr_t address, const struct ksmemu_agent *agent, int prot, uint64_t frame)
{
	const unsigned char *want = frame == KSMEMU_FRAME_ZERO
					    ? zeros
					    : agent->frames + (frame << KSMEMU_PAGE_SHIFT);
	unsigned char have[KSMEMU_PAGE_SIZE];

	if (ksmemu_is_broken("verify"))
		return true;
	if (prot & PROT_READ)
		return memcmp((const void *)address, want, KSMEMU_PAGE_SIZE) == 0;
	return ksmemu_read_by_force(address, have, sizeof(have)) == (ssize_t)sizeof(have) &&
	       memcmp(have, want, sizeof(have)) == 0;
}

static int remap(const struct ksmemu_agent *agent, uintptr_t start, size_t size, int prot,
		 uint64_t frame)
{
	if (frame == KSMEMU_FRAME_ZERO)
		return ksmemu_map_zero(start, size, prot);
	return (agent->terms.secure ? ksmemu_map_frames_evenly : ksmemu_map_frames)(
		start, size, prot, agent->pool.file, (off_t)(frame << KSMEMU_PAGE_SHIFT));
}

/*
 * Verify a frozen run and remap each stretch of equal pages under one protection; error[i] tells of page i of
 * the run.
 */
static void merge_run(const struct ksmemu_agent *agent, struct ksmemu_space *space,
		      const struct ksmemu_run *run, int32_t *error)
{
	uintptr_t start = space->start + (run->page << KSMEMU_PAGE_SHIFT);
	uintptr_t end = start + ((uintptr_t)run->nr_pages << KSMEMU_PAGE_SHIFT);
	uint32_t from = 0;

	while (from < run->nr_pages) {
		uint64_t frame = ksmemu_frame_of(run, from);
		uintptr_t at = start + ((uintptr_t)from << KSMEMU_PAGE_SHIFT);
		int prot;
		uintptr_t stop = ksmemu_space_protection(space, at, end, &prot);
		uint32_t to = from;
		int32_t failed;

		while (start + ((uintptr_t)to << KSMEMU_PAGE_SHIFT) < stop &&
		       is_equal(start + ((uintptr_t)to << KSMEMU_PAGE_SHIFT), agent, prot,
				ksmemu_frame_of(run, to)))
			to++;
		if (to == from) {
			error[to++] = EAGAIN;
		} else {
			failed = -remap(agent, at, (size_t)(to - from) << KSMEMU_PAGE_SHIFT, prot,
					frame);
			for (uint32_t i = from; i < to; i++)
				error[i] = failed;
			if (!failed)
				(void)ksmemu_space_inherit(
					space, at, start + ((uintptr_t)to << KSMEMU_PAGE_SHIFT),
					false);
		}
		from = to;
	}
}

/*
 * Record writes again to what stayed OWN: is_own[i] says that page i of the window lies between runs, or
 * failed. Not armed, so the next harvest names it: nobody recorded writes just before the freeze.
 */
static void thaw(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
		 uintptr_t start, const bool *is_own, size_t nr, bool is_frozen)
{
	bool any = false;

	for (size_t i = 0; i < nr; i++)
		any |= is_own[i];
	if (!any)
		return;
	if (is_frozen)
		ksmemu_unfreeze(agent, start, nr << KSMEMU_PAGE_SHIFT);
	for (size_t from = 0; from < nr; from++) {
		size_t to = from;

		/* What shows an ancestor is a copy once it is written: that is looked for, not tracked. */
		while (to < nr && is_own[to] &&
		       !ksmemu_space_is_inherited(space, start + (to << KSMEMU_PAGE_SHIFT)))
			to++;
		/* Can this fail, then with ENOMEM: writes go unseen, verify still compares bytes. */
		if (to > from)
			(void)ksmemu_track(agent, start + (from << KSMEMU_PAGE_SHIFT),
					   start + (to << KSMEMU_PAGE_SHIFT));
		from = to;
	}
}

/* Merge pages [from, to) of a run again; ret[i] tells of page i of the run. */
static void renew_stretch(struct ksmemu_agent *agent, struct ksmemu_space *space,
			  const struct ksmemu_run *run, uint32_t from, uint32_t to, int32_t *ret,
			  uint64_t *frozen_ns)
{
	struct ksmemu_run part = {
		.page = run->page + from,
		.frame = ksmemu_frame_of(run, from),
		.nr_pages = to - from,
	};
	uintptr_t start = space->start + (part.page << KSMEMU_PAGE_SHIFT);
	size_t size = (size_t)part.nr_pages << KSMEMU_PAGE_SHIFT;
	uint64_t since = ksmemu_fresh_slice();
	int error = ksmemu_freeze(agent, space, start, size);
	bool is_done = !error;

	if (!error)
		merge_run(agent, space, &part, ret + from);
	for (uint32_t i = from; i < to; i++) {
		if (error)
			ret[i] = -error;
		is_done &= ret[i] == 0;
	}
	if (!error && !is_done) /* thaw: a copy that stays is looked for, not tracked */
		ksmemu_unfreeze(agent, start, size);
	ksmemu_uffd_wake(agent->freeze, start, size);
	ksmemu_note_freeze(since, frozen_ns);
}

/* Renew each stretch under a freeze of its own; mapping a frame anew does not ask what is mapped. */
static void renew_apart(struct ksmemu_agent *agent, struct ksmemu_space *space,
			const struct ksmemu_run *run, int32_t *ret, uint64_t *frozen_ns)
{
	uint32_t from, to;

	for (from = 0; from < run->nr_pages; from = to) {
		for (to = from; to < run->nr_pages && ret[to] == 0;)
			to++;
		if (to > from)
			renew_stretch(agent, space, run, from, to, ret, frozen_ns);
		else
			to++;
	}
}

/* A private copy that is to show its frame again; *error as in ksmemu_renew(). */
struct copy {
	uintptr_t at;
	uint64_t frame;
	int32_t *error;
};

/* A look without a freeze: most that was written differs, and need not be held for that. Return the others. */
static size_t equal_copies(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
			   const struct ksmemu_run *run, int32_t *error, struct copy *ret)
{
	uintptr_t start = space->start + (run->page << KSMEMU_PAGE_SHIFT);
	size_t nr = 0;
	int prot;

	(void)ksmemu_space_protection(space, start, start + KSMEMU_PAGE_SIZE, &prot);
	for (uint32_t i = 0; i < run->nr_pages; i++) {
		uintptr_t at = start + ((uintptr_t)i << KSMEMU_PAGE_SHIFT);
		uint64_t frame = ksmemu_frame_of(run, i);

		error[i] = prot & PROT_READ && is_equal(at, agent, prot, frame) ? 0 : EAGAIN;
		if (error[i] == 0)
			ret[nr++] = (struct copy){ at, frame, &error[i] };
	}
	return nr;
}

/* Whether all from the first copy to the last is mapped from the pool, and each copy lies over its own frame. */
static bool lie_over_frames(const struct ksmemu_agent *agent, const struct copy *copies, size_t nr)
{
	struct ksmemu_mapping found = { .end = copies[0].at };

	for (size_t i = 0; i < nr; i++) {
		while (found.end <= copies[i].at)
			if (!ksmemu_mapping_at(agent, found.end, &found) ||
			    !ksmemu_is_of(&found, &agent->pool.inode))
				return false;
		if (found.offset + (off_t)(copies[i].at - found.start) !=
			    (off_t)(copies[i].frame << KSMEMU_PAGE_SHIFT) &&
		    !ksmemu_is_broken("over"))
			return false;
	}
	return true;
}

/*
 * Drop the copies that have no error, with one flush of the other processors' TLBs for all. Before Linux 6.14 each
 * takes its own.
 */
static bool drop(const struct copy *copies, size_t nr)
{
	struct iovec dropped[KSMEMU_WINDOW_PAGES];
	size_t n = 0;

	for (size_t i = 0; i < nr; i++)
		if (*copies[i].error == 0)
			dropped[n++] = (struct iovec){ (void *)copies[i].at, KSMEMU_PAGE_SIZE };
	if (syscall(SYS_process_madvise, PIDFD_SELF_THREAD_GROUP, dropped, n, MADV_DONTNEED, 0) ==
	    (long)(n << KSMEMU_PAGE_SHIFT))
		return true;
	for (size_t i = 0; i < n; i++)
		if (madvise(dropped[i].iov_base, KSMEMU_PAGE_SIZE, MADV_DONTNEED) < 0)
			return false;
	return true;
}

/*
 * Renew copies that lie apart under one freeze: to interrupt the other processors, once to protect and once to
 * unmap, is half of what it costs to renew a page alone. Return false: those without an error are not renewed.
 */
static bool renew_together(struct ksmemu_agent *agent, const struct ksmemu_space *space,
			   const struct copy *copies, size_t nr, uint64_t *frozen_ns)
{
	uintptr_t start = copies[0].at;
	size_t size = copies[nr - 1].at + KSMEMU_PAGE_SIZE - start;
	uint64_t since;
	bool is_done;

	if (!lie_over_frames(agent, copies, nr))
		return false;
	since = ksmemu_fresh_slice();
	is_done = !ksmemu_freeze(agent, space, start, size);
	if (is_done) {
		for (size_t i = 0; i < nr; i++)
			if (!is_equal(copies[i].at, agent, PROT_READ, copies[i].frame))
				*copies[i].error = EAGAIN;
		/* SAFE: FROZEN, verified, and what lies under each copy is the frame it was verified with. */
		is_done = lie_over_frames(agent, copies, nr) && drop(copies, nr);
		ksmemu_unfreeze(agent, start, size);
	}
	ksmemu_uffd_wake(agent->freeze, start, size);
	ksmemu_note_freeze(since, frozen_ns);
	return is_done;
}

void ksmemu_renew(struct ksmemu_agent *agent, struct ksmemu_space *space,
		  const struct ksmemu_run *runs, size_t nr, int32_t *ret, uint64_t *frozen_ns)
{
	struct copy copies[KSMEMU_WINDOW_PAGES];
	size_t nr_copies = 0;

	for (size_t r = 0; r < nr; r++)
		nr_copies += equal_copies(agent, space, &runs[r],
					  ret + (runs[r].page - runs[0].page), copies + nr_copies);
	if (nr_copies == 0 ||
	    (!agent->terms.secure && renew_together(agent, space, copies, nr_copies, frozen_ns)))
		return;
	for (size_t r = 0; r < nr; r++)
		renew_apart(agent, space, &runs[r], ret + (runs[r].page - runs[0].page), frozen_ns);
}

/* Fault the frames in that verify will read, so that no writer is held for that. */
static void read_ahead(const struct ksmemu_agent *agent, const struct ksmemu_run *runs, size_t nr)
{
	for (size_t r = 0; r < nr; r++) {
		const volatile unsigned char *frame;

		if (runs[r].frame == KSMEMU_FRAME_ZERO)
			continue;
		frame = agent->frames + (runs[r].frame << KSMEMU_PAGE_SHIFT);
		for (uint32_t i = 0; i < runs[r].nr_pages; i++)
			(void)frame[(size_t)i << KSMEMU_PAGE_SHIFT];
	}
}

void ksmemu_merge_window(struct ksmemu_agent *agent, struct ksmemu_space *space,
			 const struct ksmemu_run *runs, size_t nr, struct ksmemu_verdict *verdict,
			 uint64_t *frozen_ns)
{
	uint64_t first = runs[0].page;
	uintptr_t start = space->start + (first << KSMEMU_PAGE_SHIFT);
	bool is_own[KSMEMU_WINDOW_PAGES];
	uint64_t since;
	size_t nr_pages, size;
	int error;

	verdict->nr_pages = runs[nr - 1].page + runs[nr - 1].nr_pages - first;
	nr_pages = verdict->nr_pages;
	size = nr_pages << KSMEMU_PAGE_SHIFT;
	memset(verdict->error, 0, sizeof(verdict->error));
	memset(is_own, true, sizeof(is_own));

	read_ahead(agent, runs, nr);
	since = ksmemu_fresh_slice();
	error = ksmemu_freeze(agent, space, start, size);
	for (size_t r = 0; r < nr; r++) {
		uint64_t at = runs[r].page - first;

		if (!error)
			merge_run(agent, space, &runs[r], verdict->error + at);
		for (uint32_t i = 0; i < runs[r].nr_pages; i++) {
			if (error)
				verdict->error[at + i] = -error;
			is_own[at + i] = verdict->error[at + i] != 0;
		}
	}
	if (error != -EFAULT) /* what is not ours was not frozen, and is not to be recorded */
		thaw(agent, space, start, is_own, nr_pages, !error);
	ksmemu_uffd_wake(agent->freeze, start, size);
	ksmemu_note_freeze(since, frozen_ns);

	for (size_t from = 0; from < nr_pages; from++) {
		size_t to = from;

		while (to < nr_pages && !is_own[to])
			to++;
		/*
		 * SAFE: no mapping shows these bytes any more. Inside an unsealed object this cannot
		 * fail; if it did, memory would be held twice and nothing lost.
		 */
		if (to > from)
			(void)ksmemu_punch(space->own.file,
					   (off_t)((first + from) << KSMEMU_PAGE_SHIFT),
					   (to - from) << KSMEMU_PAGE_SHIFT);
		from = to;
	}
}
