/*
 * Step 2: fingerprints of many pages a call.
 *
 * XXH3, 64 bits, inline from the system's headers. A fingerprint is a claim: only verify, under freeze,
 * makes two pages equal.
 */
#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#if !__has_include(<xxhash.h>)
#error "xxhash.h is missing: install libxxhash-dev (Debian) or xxhash-devel"
#endif
#define XXH_INLINE_ALL
#include <xxhash.h>

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

int ksmemu_checksum_pages(int fd, const uint64_t *pages, size_t nr, uint64_t seed, uint64_t *ret)
{
	_Alignas(64) unsigned char buffer[READ_PAGES << KSMEMU_PAGE_SHIFT];

	for (size_t i = 0; i < nr;) {
		size_t n = row(pages + i, NULL, nr - i, READ_PAGES);
		int error = read_row(fd, buffer, pages[i], n);

		if (error)
			return error;
		for (size_t k = 0; k < n; k++)
			ret[i + k] = XXH3_64bits_withSeed(buffer + (k << KSMEMU_PAGE_SHIFT),
							  KSMEMU_PAGE_SIZE, seed);
		i += n;
	}
	return 0;
}

int ksmemu_fill_frames(int fd, const uint64_t *pages, unsigned char *pool, size_t pool_bytes,
		       const uint64_t *frames, size_t nr, uint64_t seed, uint64_t *ret)
{
	for (size_t i = 0; i < nr;) {
		size_t n = row(pages + i, frames + i, nr - i, READ_PAGES);
		unsigned char *to;
		int error;

		if (frames[i] + n > pool_bytes >> KSMEMU_PAGE_SHIFT)
			return -EINVAL;
		to = pool + (frames[i] << KSMEMU_PAGE_SHIFT);
		error = read_row(fd, to, pages[i], n);
		if (error) /* the kernel could not fault the frame in: the pool's file system is full */
			return error == -EFAULT ? -ENOSPC : error;
		for (size_t k = 0; k < n; k++)
			ret[i + k] = XXH3_64bits_withSeed(to + (k << KSMEMU_PAGE_SHIFT),
							  KSMEMU_PAGE_SIZE, seed);
		i += n;
	}
	return 0;
}
