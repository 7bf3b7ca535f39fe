/*
 * Step 1: what was written, what was copied on write, where an object holds data.
 *
 * PAGEMAP_SCAN works on the descriptor, so ksmd asks about a worker without its help and a busy worker
 * delays no scan. For the fast path of the kernel the category mask and the return mask of a harvest
 * are both exactly PAGE_IS_WRITTEN.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"
#include "uapi.h"

/* Regions a call: bounds the stack, not the walk. */
#define REGIONS 1024u

/* Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst). */
#define ENTRY_FILE (UINT64_C(1) << 61)
#define ENTRY_SWAPPED (UINT64_C(1) << 62)
#define ENTRY_PRESENT (UINT64_C(1) << 63)

/* Append [start, end), joined with the range before it where they touch. */
static size_t append(struct ksmemu_range *ranges, size_t nr, uint64_t start, uint64_t end)
{
	if (nr && ranges[nr - 1].end == start) {
		ranges[nr - 1].end = end;
		return nr;
	}
	ranges[nr] = (struct ksmemu_range){ start, end };
	return nr + 1;
}

static int scan(int pagemap, struct pm_scan_arg *arg, uint64_t *start, uint64_t end,
		struct ksmemu_range *ret, size_t max, size_t *ret_nr)
{
	struct page_region regions[REGIONS];
	size_t nr = 0;

	arg->size = sizeof(*arg);
	arg->end = end;
	arg->vec = (uintptr_t)regions;
	while (*start < end && nr < max) {
		int found;

		arg->start = *start;
		arg->vec_len = max - nr < REGIONS ? max - nr : REGIONS;
		found = ioctl(pagemap, PAGEMAP_SCAN, arg);
		if (found < 0)
			return -errno;
		for (int i = 0; i < found; i++)
			nr = append(ret, nr, regions[i].start, regions[i].end);
		*start = arg->walk_end;
	}
	*ret_nr = nr;
	return 0;
}

int ksmemu_harvest(int pagemap, uint64_t *start, uint64_t end, struct ksmemu_range *ret, size_t max,
		   size_t *ret_nr)
{
	struct pm_scan_arg arg = {
		/*
		 * SAFE: re-arms in the same walk, under the kernel's page table lock: a write lands
		 * either before the walk and is named now, or after it and is named the next time.
		 */
		.flags = ksmemu_is_broken("rearm") ? 0 : PM_SCAN_WP_MATCHING,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};

	return scan(pagemap, &arg, start, end, ret, max, ret_nr);
}

/* The same from pagemap entries, for kernels before 6.7; there the zero page looks like a copy. */
static int find_private_by_entry(int pagemap, uint64_t *start, uint64_t end,
				 struct ksmemu_range *ret, size_t max, size_t *ret_nr)
{
	uint64_t entries[REGIONS];
	size_t nr = 0;

	while (*start < end && nr + REGIONS <= max) {
		uint64_t want = (end - *start) >> KSMEMU_PAGE_SHIFT;
		off_t at = (off_t)((*start >> KSMEMU_PAGE_SHIFT) * sizeof(uint64_t));
		ssize_t got;

		if (want > REGIONS)
			want = REGIONS;
		got = pread(pagemap, entries, want * sizeof(uint64_t), at);
		if (got <= 0)
			return got < 0 ? -errno : -ESRCH;
		for (size_t i = 0; i < (size_t)got / sizeof(uint64_t); i++) {
			uint64_t address = *start + (i << KSMEMU_PAGE_SHIFT);

			if ((entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) &&
			    !(entries[i] & ENTRY_FILE))
				nr = append(ret, nr, address, address + KSMEMU_PAGE_SIZE);
		}
		*start += (uint64_t)got / sizeof(uint64_t) << KSMEMU_PAGE_SHIFT;
	}
	*ret_nr = nr;
	return 0;
}

int ksmemu_find_private(int pagemap, bool zero_too, uint64_t *start, uint64_t end,
			struct ksmemu_range *ret, size_t max, size_t *ret_nr)
{
	uint64_t never = PAGE_IS_FILE | (zero_too ? 0 : PAGE_IS_PFNZERO);
	struct pm_scan_arg arg = {
		.category_mask = never,
		.category_inverted = never,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT,
	};
	int error = scan(pagemap, &arg, start, end, ret, max, ret_nr);

	if (error == -ENOTTY)
		error = find_private_by_entry(pagemap, start, end, ret, max, ret_nr);
	return error;
}

int ksmemu_probe_pagemap_scan(void)
{
	AUTO_CLOSE int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct pm_scan_arg arg = { .size = sizeof(arg) };

	if (pagemap < 0)
		return -errno;
	return ioctl(pagemap, PAGEMAP_SCAN, &arg) < 0 ? -errno : 0;
}

int ksmemu_data_extents(int fd, uint64_t *start, uint64_t end, struct ksmemu_range *ret, size_t max,
			size_t *ret_nr)
{
	size_t nr = 0;

	while (*start < end && nr < max) {
		off_t data = lseek(fd, (off_t)*start, SEEK_DATA);
		off_t hole;

		if (data < 0 && errno != ENXIO)
			return -errno;
		if (data < 0 || (uint64_t)data >= end) { /* ENXIO: nothing but hole */
			*start = end;
			break;
		}
		hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		*start = (uint64_t)hole < end ? (uint64_t)hole : end;
		nr = append(ret, nr, (uint64_t)data, *start);
	}
	*ret_nr = nr;
	return 0;
}
