/*
 * What the application's threads ask of their agent: spaces come and go, ranges are advised, withdrawn,
 * unmapped. Each change and its report to ksmd happen under one lock, so ksmd hears of changes in the order
 * in which they were made.
 */
#include <errno.h>
#include <stdlib.h>

#include "cleanup.h"
#include "core.h"
#include "transaction.h"

int ksmemu_agent_add_space(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, size_t size,
			   int own)
{
	struct ksmemu_space *space = calloc(1, sizeof(*space));

	if (!space) {
		close(own);
		return -ENOMEM;
	}
	*space = (struct ksmemu_space){ .id = id, .start = start, .size = size, .own = own };
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
		ksmemu_report_change(agent, space, KSMEMU_CLOSED, space->start,
				     space->start + space->size);
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
	uintptr_t done = end;
	int error;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	if (adopt)
		error = ksmemu_adopt(agent, space, start, end, &done);
	else
		error = ksmemu_track(agent, start, end);
	if (!error)
		error = ksmemu_space_set_advised(space, advised, nr);
	if (!error)
		ksmemu_report_change(agent, space, KSMEMU_ADVISED, start, end);
	else if (agent->track >= 0 && done > start)
		(void)ksmemu_uffd_unregister(agent->track, start, done - start);
	*ret_done = done;
	return error;
}

int ksmemu_agent_withdraw(struct ksmemu_agent *agent, uint32_t id,
			  const struct ksmemu_range *advised, size_t nr)
{
	struct ksmemu_space *space;
	int error;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	error = ksmemu_space_set_advised(space, advised, nr);
	if (!error)
		space->epoch++; /* orders under way are stale: see ESTALE in wire.h */
	return error;
}

int ksmemu_agent_protect(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
			 int prot, const struct ksmemu_protection *protections, size_t nr)
{
	struct ksmemu_space *space;
	int error;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	error = ksmemu_protect(start, end - start, prot);
	if (!error)
		error = ksmemu_space_set_protections(space, protections, nr);
	return error;
}

int ksmemu_agent_rehome(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end)
{
	const size_t window_bytes = KSMEMU_REHOME_PAGES << KSMEMU_PAGE_SHIFT;
	uint64_t frozen_ns = 0;
	int prot, error = 0;

	for (uintptr_t stop; start < end && !error; start = stop) {
		struct ksmemu_space *space;
		GUARD(&agent->lock);

		stop = end - start < window_bytes ? end : start + window_bytes;
		space = ksmemu_space_find(agent, id);
		if (!space)
			return -ENOENT;
		stop = ksmemu_space_protection(space, start, stop, &prot);
		error = ksmemu_rehome(agent, space, start, stop, &frozen_ns);
	}
	return error;
}

int ksmemu_agent_unadvised(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end)
{
	struct ksmemu_space *space;
	int error = 0;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	if (agent->track >= 0)
		error = ksmemu_uffd_unregister(agent->track, start, end - start);
	if (error)
		return error;
	/*
	 * SAFE: an order of this epoch was sent by a ksmd that has heard that the pages are home. One of the
	 * withdrawal's may wait in the socket, and they may be advised again before it is read.
	 */
	space->epoch++;
	ksmemu_report_change(agent, space, KSMEMU_UNADVISED, start, end);
	return 0;
}

int ksmemu_agent_shareable(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
			   bool on)
{
	struct ksmemu_space *space;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	ksmemu_report_change(agent, space, on ? KSMEMU_ADVISED : KSMEMU_UNSHAREABLE, start, end);
	return 0;
}

int ksmemu_agent_refused(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end)
{
	struct ksmemu_space *space;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	ksmemu_report_change(agent, space, KSMEMU_REFUSED, start, end);
	return 0;
}

int ksmemu_agent_unmap(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
		       const struct ksmemu_range *advised, size_t nr)
{
	struct ksmemu_space *space;
	int error;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	error = ksmemu_map_nothing(start, end - start);
	if (!error)
		error = ksmemu_space_set_advised(space, advised, nr);
	if (error)
		return error;
	space->epoch++;
	/* SAFE: the application gave these bytes up, and nothing maps them any more. */
	error = ksmemu_punch(space->own, ksmemu_offset(space, start), end - start);
	ksmemu_report_change(agent, space, KSMEMU_UNMAPPED, start, end);
	return error;
}
