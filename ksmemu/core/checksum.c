/*
 * Step 2: fingerprints of many pages a call.
 *
 * XXH3, 64 bits, from the system's library, which takes the widest vectors that the processor has; where it
 * does not, inline from its headers. A fingerprint is a claim: only verify, under freeze, makes two pages equal.
 */
#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#if !__has_include(<xxhash.h>)
#error "xxhash.h is missing: install libxxhash-dev (Debian) or xxhash-devel"
#endif
#if __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#else
#define XXH_INLINE_ALL
#include <xxhash.h>
#endif

#include "core.h"

/* Pages read at once: the copy stays in the second-level cache, where the hash finds it. */
#define READ_PAGES 32u

/* How many of pages[0..nr) lie in a row, and their frames too, if given. */
static size_t row(const uint64_t *pages, const uint64_t *frames, size_t nr, size_t max)
{
	size_t n = 1;

	while (n < nr && n < max && pages[n] == pages[0] + n &&
	       (!frames || frames[n] == frames[0] + n))
		n++;
	return n;
}

/* pread() until the row is complete. */
static int read_row(int fd, unsigned char *to, uint64_t page, size_t nr)
{
	size_t size = nr << KSMEMU_PAGE_SHIFT, done = 0;

	while (done < size) {
		ssize_t got = pread(fd, to + done, size - done,
				    (off_t)((page << KSMEMU_PAGE_SHIFT) + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -ENODATA;
		done += (size_t)got;
	}
	return 0;
}

/* pwrite() until the row is complete. Whole pages: the kernel need not zero them first. */
static int write_row(int fd, const unsigned char *from, uint64_t page, size_t nr)
{
	size_t size = nr << KSMEMU_PAGE_SHIFT, done = 0;

	while (done < size) {
		ssize_t put = pwrite(fd, from + done, size - done,
				     (off_t)((page << KSMEMU_PAGE_SHIFT) + done));

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put < 0 ? -errno : -ENOSPC;
		done += (size_t)put;
	}
	return 0;
}

static void hash_row(const unsigned char *rows, size_t nr, uint64_t seed, uint64_t *ret)
{
	for (size_t i = 0; i < nr; i++)
		ret[i] = XXH3_64bits_withSeed(rows + (i << KSMEMU_PAGE_SHIFT), KSMEMU_PAGE_SIZE,
					      seed);
}

int ksmemu_checksum_pages(int fd, const uint64_t *pages, size_t nr, uint64_t seed, uint64_t *ret)
{
	_Alignas(64) unsigned char buffer[READ_PAGES << KSMEMU_PAGE_SHIFT];

	for (size_t i = 0; i < nr;) {
		size_t n = row(pages + i, NULL, nr - i, READ_PAGES);
		int error = read_row(fd, buffer, pages[i], n);

		if (error)
			return error;
		hash_row(buffer, n, seed, ret + i);
		i += n;
	}
	return 0;
}

int ksmemu_fill_frames(int fd, const uint64_t *pages, int pool, const uint64_t *frames, size_t nr,
		       uint64_t seed, uint64_t *ret)
{
	_Alignas(64) unsigned char buffer[READ_PAGES << KSMEMU_PAGE_SHIFT];

	for (size_t i = 0; i < nr;) {
		size_t n = row(pages + i, frames + i, nr - i, READ_PAGES);
		int error = read_row(fd, buffer, pages[i], n);

		if (!error)
			error = write_row(pool, buffer, frames[i], n);
		if (error)
			return error;
		hash_row(buffer, n, seed, ret + i);
		i += n;
	}
	return 0;
}
