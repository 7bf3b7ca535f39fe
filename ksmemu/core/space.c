/* The table of spaces: which addresses ksmd may have remapped. All under agent.lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
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

int ksmemu_space_set_advised(struct ksmemu_space *space, const struct ksmemu_range *advised,
			     size_t nr)
{
	struct ksmemu_range *copy = NULL;

	if (nr) {
		copy = malloc(nr * sizeof(*copy));
		if (!copy)
			return -ENOMEM;
		memcpy(copy, advised, nr * sizeof(*copy));
	}
	free(space->advised);
	space->advised = copy;
	space->nr_advised = nr;
	return 0;
}

void ksmemu_space_drop(struct ksmemu_space *space)
{
	close(space->own);
	free(space->advised);
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
