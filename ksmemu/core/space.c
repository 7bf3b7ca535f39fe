/* The table of spaces: which addresses ksmd may have remapped. All under agent.lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

struct ksmemu_space *ksmemu_space_find(struct ksmemu_agent *agent, uint32_t id)
{
	struct ksmemu_space *space = agent->spaces;

	while (space && space->id != id)
		space = space->next;
	return space;
}

bool ksmemu_space_is_advised(const struct ksmemu_space *space, uint64_t start, uint64_t end)
{
	size_t low = 0, high = space->nr_advised;

	while (low < high) { /* first range that ends behind start */
		size_t middle = low + (high - low) / 2;

		if (space->advised[middle].end > start)
			high = middle;
		else
			low = middle + 1;
	}
	return low < space->nr_advised && space->advised[low].start <= start &&
	       end <= space->advised[low].end;
}

void *ksmemu_copy(const void *list, size_t size)
{
	void *copy = malloc(size + 1);

	return copy ? memcpy(copy, list, size) : NULL;
}

void ksmemu_space_set_advised(struct ksmemu_space *space, struct ksmemu_range **advised, size_t nr)
{
	struct ksmemu_range *before = space->advised;

	space->advised = *advised;
	space->nr_advised = nr;
	*advised = before;
}

void ksmemu_space_set_notes(struct ksmemu_space *space, struct ksmemu_note **notes, size_t nr)
{
	struct ksmemu_note *before = space->notes;

	space->notes = *notes;
	space->nr_notes = nr;
	*notes = before;
}

uintptr_t ksmemu_space_protection(const struct ksmemu_space *space, uintptr_t start, uintptr_t end,
				  int *ret_prot)
{
	size_t low = 0, high = space->nr_protections;

	while (low < high) { /* first that ends behind start */
		size_t middle = low + (high - low) / 2;

		if (space->protections[middle].end > start)
			high = middle;
		else
			low = middle + 1;
	}
	*ret_prot = PROT_READ | PROT_WRITE;
	if (low < space->nr_protections) {
		const struct ksmemu_protection *next = &space->protections[low];
		uintptr_t stop = next->start;

		if (next->start <= start) {
			*ret_prot = (int)next->prot;
			stop = next->end;
		}
		end = stop < end ? stop : end;
	}
	return end;
}

void ksmemu_space_set_protections(struct ksmemu_space *space,
				  struct ksmemu_protection **protections, size_t nr)
{
	struct ksmemu_protection *before = space->protections;

	space->protections = *protections;
	space->nr_protections = nr;
	*protections = before;
}

static size_t bitmap_bytes(const struct ksmemu_space *space)
{
	return (space->size >> KSMEMU_PAGE_SHIFT) / 8 + 1;
}

int ksmemu_space_inherit(struct ksmemu_space *space, uintptr_t start, uintptr_t end, bool on)
{
	size_t first = (start - space->start) >> KSMEMU_PAGE_SHIFT;
	size_t last = (end - space->start) >> KSMEMU_PAGE_SHIFT;
	void *bits;

	if (!space->is_inherited) {
		if (!on)
			return 0;
		bits = mmap(NULL, bitmap_bytes(space), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (bits == MAP_FAILED)
			return -errno;
		space->is_inherited = bits;
	}
	for (size_t page = first; page < last; page++) {
		unsigned char bit = (unsigned char)(1u << page % 8);

		if (on)
			space->is_inherited[page / 8] |= bit;
		else
			space->is_inherited[page / 8] &= (unsigned char)~bit;
	}
	return 0;
}

bool ksmemu_space_is_inherited(const struct ksmemu_space *space, uintptr_t address)
{
	size_t page = (address - space->start) >> KSMEMU_PAGE_SHIFT;

	return space->is_inherited && space->is_inherited[page / 8] & 1u << page % 8;
}

void ksmemu_space_drop(struct ksmemu_space *space)
{
	close(space->own.file);
	for (size_t i = 0; i < KSMEMU_MAX_ANCESTORS; i++)
		ksmemu_holder_close(&space->ancestors[i].holder);
	free(space->advised);
	free(space->protections);
	free(space->notes);
	if (space->is_inherited)
		munmap(space->is_inherited, bitmap_bytes(space));
	free(space);
}

void ksmemu_spaces_drop(struct ksmemu_agent *agent)
{
	while (agent->spaces) {
		struct ksmemu_space *space = agent->spaces;

		agent->spaces = space->next;
		ksmemu_space_drop(space);
	}
}
