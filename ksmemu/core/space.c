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

/* Put a copy of nr things in the place of what is there. */
static int replace(void **place, size_t *nr_there, const void *things, size_t nr, size_t size)
{
	void *copy = NULL;

	if (nr) {
		copy = malloc(nr * size);
		if (!copy)
			return -ENOMEM;
		memcpy(copy, things, nr * size);
	}
	free(*place);
	*place = copy;
	*nr_there = nr;
	return 0;
}

int ksmemu_space_set_advised(struct ksmemu_space *space, const struct ksmemu_range *advised,
			     size_t nr)
{
	return replace((void **)&space->advised, &space->nr_advised, advised, nr, sizeof(*advised));
}

int ksmemu_space_set_notes(struct ksmemu_space *space, const struct ksmemu_note *notes, size_t nr)
{
	return replace((void **)&space->notes, &space->nr_notes, notes, nr, sizeof(*notes));
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

int ksmemu_space_set_protections(struct ksmemu_space *space,
				 const struct ksmemu_protection *protections, size_t nr)
{
	return replace((void **)&space->protections, &space->nr_protections, protections, nr,
		       sizeof(*protections));
}

void ksmemu_space_drop(struct ksmemu_space *space)
{
	close(space->own);
	for (size_t i = 0; i < KSMEMU_MAX_ANCESTORS; i++)
		ksmemu_holder_close(&space->ancestors[i].holder);
	free(space->advised);
	free(space->protections);
	free(space->notes);
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
