/*
 * What the application's threads ask of their agent: spaces come and go, ranges are advised, withdrawn,
 * unmapped. Each change and its report to ksmd happen under one lock, so ksmd hears of changes in the order
 * in which they were made. What a change needs is allocated before it: none is left half done.
 */
#include <errno.h>
#include <stdlib.h>

#include "cleanup.h"
#include "core.h"
#include "freeze.h"

/* Tell ksmd of a change at [start, end); agent.lock held since the change. */
static void report(struct ksmemu_agent *agent, const struct ksmemu_space *space, uint32_t kind,
		   uintptr_t start, uintptr_t end, uint32_t value)
{
	agent->outbox.spans[0] = (struct ksmemu_span){
		.page = (start - space->start) >> KSMEMU_PAGE_SHIFT,
		.nr_pages = (end - start) >> KSMEMU_PAGE_SHIFT,
		.value = value,
	};
	ksmemu_report(agent, space, kind, 1);
}

int ksmemu_agent_add_space(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, size_t size,
			   uint32_t node, int own)
{
	struct ksmemu_space *space = calloc(1, sizeof(*space));

	if (!space)
		return -ENOMEM;
	*space = (struct ksmemu_space){
		.id = id,
		.start = start,
		.size = size,
		.node = node,
		.own = ksmemu_object(own),
	};
	space->heritage.own = -1;
	for (size_t i = 0; i < KSMEMU_MAX_ANCESTORS; i++)
		space->ancestors[i].holder.file = space->heritage.holders[i].file = -1;
	GUARD(&agent->lock);
	space->next = agent->spaces;
	agent->spaces = space;
	return 0;
}

int ksmemu_agent_remove_space(struct ksmemu_agent *agent, uint32_t id)
{
	GUARD(&agent->lock);

	for (struct ksmemu_space **at = &agent->spaces; *at; at = &(*at)->next) {
		struct ksmemu_space *space = *at;
		int error;

		if (space->id != id)
			continue;
		/* Not replaced but taken away: that needs no new mapping, so it works at their limit too. */
		error = ksmemu_unreserve(space->start, space->size);
		if (error)
			return error;
		report(agent, space, KSMEMU_CLOSED, space->start, space->start + space->size, 0);
		*at = space->next;
		ksmemu_space_drop(space);
		return 0;
	}
	return -ENOENT;
}

int ksmemu_agent_advise(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
			bool adopt, const struct ksmemu_range *advised, size_t nr,
			uintptr_t *ret_done)
{
	struct ksmemu_space *space;
	AUTO_FREE struct ksmemu_range *list = ksmemu_copy(advised, nr * sizeof(*advised));
	uintptr_t done = adopt ? start : end;
	int error = list ? 0 : -ENOMEM;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	if (!error && adopt)
		error = ksmemu_adopt(agent, space, start, end, &done);
	if (!error && !adopt)
		error = ksmemu_leave_ancestors(agent, space, start, end);
	if (!error && !adopt)
		error = ksmemu_track(agent, start, end);
	if (!error) {
		ksmemu_space_set_advised(space, &list, nr);
		report(agent, space, KSMEMU_ADVISED, start, end, 0);
	} else if (agent->track >= 0 && done > start) {
		(void)ksmemu_uffd_unregister(agent->track, start, done - start);
	}
	*ret_done = done;
	return error;
}

int ksmemu_agent_withdraw(struct ksmemu_agent *agent, uint32_t id,
			  const struct ksmemu_range *advised, size_t nr)
{
	AUTO_FREE struct ksmemu_range *list = ksmemu_copy(advised, nr * sizeof(*advised));
	struct ksmemu_space *space;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	if (!list)
		return -ENOMEM;
	ksmemu_space_set_advised(space, &list, nr);
	space->epoch++; /* orders under way are stale: see ESTALE in wire.h */
	return 0;
}

/* Undo what an mprotect(2) did before it failed: verify reads what the table calls readable. */
static void protect_again(const struct ksmemu_space *space, uintptr_t start, uintptr_t end)
{
	for (uintptr_t stop; start < end; start = stop) {
		int prot;

		stop = ksmemu_space_protection(space, start, end, &prot);
		(void)ksmemu_protect(start, stop - start, prot); /* so many mappings there were */
	}
}

int ksmemu_agent_protect(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
			 int prot, const struct ksmemu_protection *protections, size_t nr)
{
	AUTO_FREE struct ksmemu_protection *list = ksmemu_copy(protections, nr * sizeof(*list));
	struct ksmemu_space *space;
	int error;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	if (!list)
		return -ENOMEM;
	error = ksmemu_protect(start, end - start, prot);
	if (error)
		protect_again(space, start, end);
	else
		ksmemu_space_set_protections(space, &list, nr);
	return error;
}

/* Rehome what of [start, end) fits into one freeze and is under one protection; @ret_stop: how far that is. */
static int rehome_first(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
			uintptr_t end, uintptr_t *ret_stop)
{
	const size_t window_bytes = KSMEMU_REHOME_PAGES << KSMEMU_PAGE_SHIFT;
	uint64_t frozen_ns = 0;
	int prot;

	if (end - start > window_bytes)
		end = start + window_bytes;
	*ret_stop = ksmemu_space_protection(space, start, end, &prot);
	return ksmemu_rehome(agent, space, start, *ret_stop, &frozen_ns);
}

int ksmemu_rehome_all(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
		      uintptr_t end)
{
	int error = 0;

	for (uintptr_t stop; start < end && !error; start = stop)
		error = rehome_first(agent, space, start, end, &stop);
	return error;
}

int ksmemu_leave_ancestors(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
			   uintptr_t end)
{
	struct ksmemu_mapping found;
	struct ksmemu_walk walk;
	int error = ksmemu_walk_begin(&walk);

	if (error)
		return error;
	while (!error && (error = ksmemu_walk_next(&walk, start, end, &found)) > 0) {
		error = 0;
		if (!ksmemu_ancestor_of(space, &found))
			continue;
		error = ksmemu_rehome_all(agent, space, found.start, found.end);
		if (!error)
			report(agent, space, KSMEMU_INHERITED, found.start, found.end, 0);
	}
	ksmemu_walk_end(&walk);
	return error;
}

int ksmemu_agent_rehome(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end)
{
	int error = 0;

	/* The lock is free between two freezes: ksmd's orders shall not wait for the whole of it. */
	for (uintptr_t stop; start < end && !error; start = stop) {
		struct ksmemu_space *space;
		GUARD(&agent->lock);

		space = ksmemu_space_find(agent, id);
		if (!space)
			return -ENOENT;
		error = rehome_first(agent, space, start, end, &stop);
	}
	return error;
}

int ksmemu_agent_unadvised(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end)
{
	struct ksmemu_space *space;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	/* What stays registered costs the first write to each page a fault, no more. */
	if (agent->track >= 0)
		(void)ksmemu_uffd_unregister(agent->track, start, end - start);
	/*
	 * SAFE: an order of this epoch was sent by a ksmd that has heard that the pages are home. One of the
	 * withdrawal's may wait in the socket, and they may be advised again before it is read.
	 */
	space->epoch++;
	report(agent, space, KSMEMU_UNADVISED, start, end, 0);
	return 0;
}

int ksmemu_agent_tell(struct ksmemu_agent *agent, uint32_t id, uint32_t kind, uintptr_t start,
		      uintptr_t end, uint32_t value)
{
	struct ksmemu_space *space;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	report(agent, space, kind, start, end, value);
	return 0;
}

int ksmemu_agent_remember(struct ksmemu_agent *agent, uint32_t id, const struct ksmemu_note *notes,
			  size_t nr)
{
	AUTO_FREE struct ksmemu_note *list = ksmemu_copy(notes, nr * sizeof(*notes));
	struct ksmemu_space *space;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	if (!list)
		return -ENOMEM;
	ksmemu_space_set_notes(space, &list, nr);
	return 0;
}

int ksmemu_agent_unmap(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
		       const struct ksmemu_range *advised, size_t nr)
{
	AUTO_FREE struct ksmemu_range *list = ksmemu_copy(advised, nr * sizeof(*advised));
	struct ksmemu_space *space;
	int error;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	error = list ? ksmemu_map_nothing(start, end - start) : -ENOMEM;
	if (error)
		return error;
	(void)ksmemu_space_inherit(space, start, end, false); /* to forget needs no memory */
	ksmemu_space_set_advised(space, &list, nr);
	space->epoch++;
	/*
	 * SAFE: the application gave these bytes up, and nothing maps them any more. Inside an unsealed object
	 * this cannot fail.
	 */
	(void)ksmemu_punch(space->own.file, ksmemu_offset(space, start), end - start);
	report(agent, space, KSMEMU_UNMAPPED, start, end, 0);
	return 0;
}
