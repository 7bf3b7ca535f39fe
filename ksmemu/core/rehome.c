/*
 * Step 6, the way back: bytes return to the space's own object, which is then mapped over them. For what
 * was broken by a write, for withdrawn advice, for run=2; and for ordinary memory on its first advice.
 *
 * The copy is one pwrite() from the frozen addresses into the own object: the kernel moves the bytes,
 * and no second mapping of the object is needed.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"
#include "freeze.h"
#include "uapi.h"

/* Ranges on the stack of one adoption; find_private_by_entry() needs 1024. */
#define RANGES 1024u

/* What is copied at once of memory that may not be read. */
#define FORCED_BYTES ((size_t)16 << KSMEMU_PAGE_SHIFT)

/* pwrite() where the application may not read (mprotect). */
static ssize_t copy_by_force(const struct ksmemu_space *space, uintptr_t start, uintptr_t end)
{
	unsigned char bytes[FORCED_BYTES];
	size_t size = end - start < sizeof(bytes) ? end - start : sizeof(bytes);
	ssize_t got = ksmemu_read_by_force(start, bytes, size);

	return got <= 0 ? got
			: pwrite(space->own.file, bytes, (size_t)got, ksmemu_offset(space, start));
}

static int copy_home(const struct ksmemu_space *space, uintptr_t start, uintptr_t end)
{
	if (ksmemu_is_broken("copy"))
		return ftruncate(space->own.file, (off_t)space->size) < 0 ? -errno : 0;
	while (start < end) {
		ssize_t done = pwrite(space->own.file, (const void *)start, end - start,
				      ksmemu_offset(space, start));

		if (done < 0 && errno == EFAULT)
			done = copy_by_force(space, start, end);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -ENOSPC;
		start += (uintptr_t)done;
	}
	return 0;
}

static bool is_hole(const struct ksmemu_space *space, uintptr_t start, uintptr_t end)
{
	off_t data = lseek(space->own.file, ksmemu_offset(space, start), SEEK_DATA);

	return data < 0 ? errno == ENXIO : data >= ksmemu_offset(space, end);
}

int ksmemu_rehome(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
		  uintptr_t end, uint64_t *frozen_ns)
{
	size_t size = end - start;
	bool is_frozen, was_hole = false;
	uint64_t since;
	int error, prot;

	/*
	 * A frame that this process has not read since it was merged is not mapped yet. To protect it leaves a
	 * marker, and the copy faults page by page: twice the time. Where it fails the copy says why.
	 */
	(void)madvise((void *)start, size, MADV_POPULATE_READ);
	since = ksmemu_fresh_slice();
	error = ksmemu_freeze(agent, space, start, size);
	is_frozen = !error;

	(void)ksmemu_space_protection(space, start, end, &prot);
	if (!error) {
		was_hole = is_hole(space, start,
				   end); /* and stays one: writers to OWN pages are held too */
		error = copy_home(space, start, end);
	}
	if (!error)
		error = ksmemu_map_own(start, size, prot, space->own.file,
				       ksmemu_offset(space, start));
	if (error) { /* thaw: as it was */
		if (is_frozen)
			ksmemu_unfreeze(agent, start, size);
		if (was_hole)
			(void)ksmemu_punch(space->own.file, ksmemu_offset(space, start), size);
	} else {
		(void)ksmemu_space_inherit(space, start, end, false);
		/* An unarmed page is named by every harvest: late to merge again, never lost. */
		(void)ksmemu_arm(agent, start, end);
	}
	ksmemu_uffd_wake(agent->freeze, start, size);
	ksmemu_note_freeze(since, frozen_ns);
	return error;
}

/* Where the next adoption may end: at most KSMEMU_ADOPT_PAGES populated pages from start. A guess. */
static int next_stop(const struct ksmemu_agent *agent, uintptr_t start, uintptr_t end,
		     uintptr_t *ret)
{
	struct ksmemu_range found[RANGES];
	uint64_t at = start, pages = 0;
	size_t nr;
	int error = ksmemu_find_private(agent->pagemap, false, &at, end, found, RANGES, &nr);

	if (error)
		return error;
	*ret = at;
	for (size_t i = 0; i < nr; i++) {
		uint64_t here = (found[i].end - found[i].start) >> KSMEMU_PAGE_SHIFT;

		if (pages + here >= KSMEMU_ADOPT_PAGES) {
			*ret = found[i].start + ((KSMEMU_ADOPT_PAGES - pages) << KSMEMU_PAGE_SHIFT);
			break;
		}
		pages += here;
	}
	return 0;
}

/* Apply to every private page of [start, end): hold its writers, or copy it home. */
static int each_private(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
			uintptr_t start, uintptr_t end, bool protect)
{
	struct ksmemu_range found[RANGES];
	uint64_t at = start;
	int error = 0;

	while (!error && at < end) {
		size_t nr;

		error = ksmemu_find_private(agent->pagemap, protect, &at, end, found, RANGES, &nr);
		for (size_t i = 0; !error && i < nr; i++)
			error = protect ? ksmemu_uffd_protect(agent->freeze, found[i].start,
							      found[i].end - found[i].start)
					: copy_home(space, found[i].start, found[i].end);
	}
	return error;
}

static int arm_data(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
		    uintptr_t start, uintptr_t end)
{
	struct ksmemu_range found[RANGES];
	uint64_t at = start - space->start;
	int error = ksmemu_track(agent, start, end);

	while (!error && agent->track >= 0 && at < end - space->start) {
		size_t nr;

		error = ksmemu_data_extents(space->own.file, &at, end - space->start, found, RANGES,
					    &nr);
		for (size_t i = 0; !error && i < nr; i++)
			error = ksmemu_uffd_protect(agent->track, space->start + found[i].start,
						    found[i].end - found[i].start);
	}
	return error;
}

/* *ret_done becomes end as soon as the memory is moved. */
static int adopt_stretch(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
			 uintptr_t end, int prot, uintptr_t *ret_done)
{
	/*
	 * SAFE: with MISSING watched, no page can appear; then every page there is gets protected. So
	 * from the second step on nothing changes until the wake, and no page table is made for holes.
	 */
	int error = ksmemu_uffd_register(agent->freeze, start, end - start,
					 UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);

	if (error && error != -ENOMEM) /* seen before any mapping was registered */
		return error;
	if (!error && !ksmemu_is_broken("freeze"))
		error = each_private(agent, space, start, end, true);
	if (!error)
		error = each_private(agent, space, start, end, false);
	if (!error)
		error = ksmemu_map_own(start, end - start, prot, space->own.file,
				       ksmemu_offset(space, start));
	if (error) {
		ksmemu_unfreeze(agent, start, end - start);
		(void)ksmemu_punch(space->own.file, ksmemu_offset(space, start), end - start);
	} else {
		*ret_done = end;
		error = arm_data(agent, space, start, end);
	}
	ksmemu_uffd_wake(agent->freeze, start, end - start);
	return error;
}

int ksmemu_adopt(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
		 uintptr_t end, uintptr_t *ret_done)
{
	int error = 0;

	*ret_done = start;
	while (*ret_done < end && !error) {
		int prot;
		uintptr_t stop = ksmemu_space_protection(space, *ret_done, end, &prot);

		error = next_stop(agent, *ret_done, stop, &stop);
		if (!error)
			error = adopt_stretch(agent, space, *ret_done, stop, prot, ret_done);
	}
	return error;
}
