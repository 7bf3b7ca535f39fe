/*
 * The only mmap(MAP_FIXED) in the tree. An mmap(MAP_FIXED) is our set_pte: it replaces what an address
 * shows, atomically for every other thread. So does an mremap(MREMAP_FIXED), with a mapping made elsewhere.
 * And what follows it: memory that no mapping shows is given back.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "core.h"

static int map_fixed(uintptr_t start, size_t size, int prot, int flags, int fd, off_t offset)
{
	void *at = mmap((void *)start, size, prot, flags | MAP_FIXED, fd, offset);

	return at == MAP_FAILED ? -errno : 0;
}

int ksmemu_reserve(size_t size, uintptr_t *ret)
{
	void *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return -errno;
	*ret = (uintptr_t)at;
	return 0;
}

int ksmemu_unreserve(uintptr_t start, size_t size)
{
	return munmap((void *)start, size) < 0 ? -errno : 0;
}

int ksmemu_map_nothing(uintptr_t start, size_t size)
{
	/* SAFE: inside a reservation of ours; the application gave up what was here. */
	return map_fixed(start, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			 0);
}

int ksmemu_map_ordinary(uintptr_t start, size_t size)
{
	/* SAFE: inside a reservation of ours, where nothing was mapped: there are no bytes to lose. */
	return map_fixed(start, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

int ksmemu_map_own(uintptr_t start, size_t size, int prot, int own, off_t offset)
{
	/*
	 * SAFE: frozen since before its bytes were written to this place in the own object, so both
	 * show the same and no writer is in between.
	 */
	return map_fixed(start, size, prot, MAP_SHARED, own, offset);
}

int ksmemu_map_frames(uintptr_t start, size_t size, int prot, int pool, off_t offset)
{
	/* SAFE: FROZEN and verified equal to the frames, so no byte and no writer can be lost. */
	return map_fixed(start, size, prot, MAP_PRIVATE, pool, offset);
}

int ksmemu_map_ancestor(uintptr_t start, size_t size, int prot, int object, off_t offset)
{
	/* SAFE: the same bytes of the same object, in one step; a write is in it before, or private after. */
	return map_fixed(start, size, prot, MAP_PRIVATE, object, offset);
}

int ksmemu_map_frames_evenly(uintptr_t start, size_t size, int prot, int pool, off_t offset)
{
	/* Made apart, since a copy is dropped: at its place somebody's write could be in it. */
	void *made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, pool, offset);
	int error = 0;

	if (made == MAP_FAILED)
		return -errno;
	/* The first copy in a mapping costs more (its anon_vma); and reading one page maps its neighbours. */
	if (madvise(made, KSMEMU_PAGE_SIZE, MADV_POPULATE_WRITE) < 0 ||
	    madvise(made, KSMEMU_PAGE_SIZE, MADV_DONTNEED) < 0 ||
	    madvise(made, size, MADV_POPULATE_READ) < 0 || mprotect(made, size, prot) < 0)
		error = -errno;
	/* SAFE: FROZEN and verified equal to the frames, so no byte and no writer can be lost. */
	if (!error &&
	    mremap(made, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start) == MAP_FAILED)
		error = -errno;
	if (error)
		munmap(made, size);
	return error;
}

int ksmemu_map_zero(uintptr_t start, size_t size, int prot)
{
	/* SAFE: FROZEN and verified to be all zeros, which is what anonymous memory shows. */
	int error = map_fixed(start, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			      0);

	/* One written byte shall cost one page, not a huge one. Kernels without THP: EINVAL. */
	if (!error)
		(void)madvise((void *)start, size, MADV_NOHUGEPAGE);
	return error;
}

int ksmemu_protect(uintptr_t start, size_t size, int prot)
{
	return mprotect((void *)start, size, prot) < 0 ? -errno : 0;
}

int ksmemu_punch(int object, off_t offset, size_t size)
{
	if (ksmemu_is_broken("punch"))
		return 0;
	if (fallocate(object, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)size) < 0)
		return -errno;
	return 0;
}
