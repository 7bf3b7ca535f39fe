/*
 * fork(): parent and child keep their own memory, and no byte is copied for it.
 *
 * The own object becomes an ancestor: from now on nobody writes to it, and both show its pages privately. Each
 * gets a new own object for what it writes. A page that is written breaks and is rehomed, as a merged one.
 *
 *   before    divide.c
 *   parent    as it was, unlocked
 *   child     descriptors of its own ▶ its own object over the holes ▶ a thread, which joins ksmd
 *
 * ksmd learns of the child when the child joins. Until then it frees nothing that the child may show: the child's
 * holders are there before the fork, and ksmd does not know them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

/* ---- before ------------------------------------------------------------------------------------ */

static void drop_heritage(struct ksmemu_space *space)
{
	if (space->heritage.own >= 0)
		close(space->heritage.own);
	space->heritage.own = -1;
	for (size_t i = 0; i < KSMEMU_MAX_ANCESTORS; i++)
		ksmemu_holder_close(&space->heritage.holders[i]);
}

static int make_heritage(struct ksmemu_space *space)
{
	int error = ksmemu_new_own(space, &space->heritage.own, NULL);

	for (size_t i = 0; i < KSMEMU_MAX_ANCESTORS && !error; i++)
		if (space->ancestors[i].holder.file >= 0)
			error = ksmemu_holder_open(space->ancestors[i].holder.file, O_RDWR,
						   &space->heritage.holders[i]);
	return error;
}

/* Whether a child gets the mappings of a space. 0 or -errno: some may have, or have not. */
static int inherit_mappings(struct ksmemu_space *space, bool on)
{
	int advice = on ? MADV_DOFORK : MADV_DONTFORK;

	return madvise((void *)space->start, space->size, advice) < 0 ? -errno : 0;
}

/* A space that cannot be divided is not there in the child, where it would be one with the parent's. */
static void prepare(struct ksmemu_agent *agent, struct ksmemu_space *space)
{
	int error = agent->child.file < 0 ? -EMFILE : 0;

	space->heritage.is_mapped = true;
	if (!error && space->is_withheld)
		error = inherit_mappings(space, true);
	if (!error && space->is_torn)
		error = ksmemu_mend(agent, space);
	if (!error && ksmemu_status(space->own.file).st_blocks > 0)
		error = ksmemu_become_ancestor(agent, space);
	if (!error)
		error = make_heritage(space);
	space->is_withheld = error != 0;
	if (error) {
		drop_heritage(space);
		space->heritage.is_mapped = inherit_mappings(space, false) != 0;
	}
}

/*
 * SAFE: with every agent.lock held no mapping changes until the parent or child handler, so the child is born
 * with what ksmd, and whoever reads the parent's mappings, can know of.
 */
static void before_fork(void)
{
	pthread_mutex_lock(&ksmemu_agents_lock);
	for (struct ksmemu_agent *agent = ksmemu_agents; agent; agent = agent->next) {
		pthread_mutex_lock(&agent->lock);
		agent->child.file = -1;
		(void)ksmemu_holder_open(agent->pool.file, O_RDONLY, &agent->child);
		for (struct ksmemu_space *space = agent->spaces; space; space = space->next)
			prepare(agent, space);
	}
}

/* ---- parent ------------------------------------------------------------------------------------ */

static void after_fork_in_parent(void)
{
	for (struct ksmemu_agent *agent = ksmemu_agents; agent; agent = agent->next) {
		for (struct ksmemu_space *space = agent->spaces; space; space = space->next) {
			if (space->is_withheld) /* if it fails, it is tried again before the next fork */
				space->is_withheld = inherit_mappings(space, true) != 0;
			drop_heritage(space);
		}
		ksmemu_holder_close(&agent->child);
		pthread_mutex_unlock(&agent->lock);
	}
	pthread_mutex_unlock(&ksmemu_agents_lock);
}

/* ---- child ------------------------------------------------------------------------------------- */

/* SAFE: where the parent's new own object is mapped there was nothing at the fork, so nothing is lost. */
static int show_own(struct ksmemu_agent *agent, struct ksmemu_space *space,
		    const struct ksmemu_mapping *mapping, int new)
{
	(void)agent;
	return ksmemu_show(space, mapping->start, mapping->end, new);
}

/* Take the heritage. An error leaves mappings of the parent's own object. */
static int inherit_space(struct ksmemu_agent *agent, struct ksmemu_space *space)
{
	int error = ksmemu_each_mapping_of(agent, space, &space->own.inode, show_own,
					   space->heritage.own);

	close(space->own.file);
	space->own = ksmemu_object(space->heritage.own);
	space->heritage.own = -1;
	for (size_t i = 0; i < KSMEMU_MAX_ANCESTORS; i++) {
		ksmemu_holder_close(&space->ancestors[i].holder);
		space->ancestors[i].holder = space->heritage.holders[i];
		space->heritage.holders[i].file = -1;
	}
	return error;
}

/* Without it parent and child would write to the same page: better no child. */
static void leave_out(struct ksmemu_space *space)
{
	if (space->heritage.is_mapped && ksmemu_unreserve(space->start, space->size))
		abort(); /* GCOVR_EXCL_LINE: what it counts does not outlive it */
	ksmemu_space_drop(space);
}

/* Spaces that were left out are gone; the others are the child's own now. */
static void inherit_spaces(struct ksmemu_agent *agent)
{
	struct ksmemu_space **at = &agent->spaces;

	while (*at) {
		struct ksmemu_space *space = *at;

		if (space->heritage.own < 0 || inherit_space(agent, space)) {
			*at = space->next;
			leave_out(space);
			continue;
		}
		at = &space->next;
	}
}

/*
 * Everything but the spaces is made anew: the parent's descriptors speak for the parent. Without descriptors or
 * memory for it the child goes on by itself: nothing more merges.
 */
static void inherit(struct ksmemu_agent *agent)
{
	struct ksmemu_holder child = agent->child;
	struct ksmemu_object pool = agent->pool;
	int error = 0;

	agent->pool.file = agent->child.file = -1;
	ksmemu_agent_close(agent);
	agent->pool = pool;
	agent->holder = child;
	agent->frames = NULL; /* not inherited */
	ksmemu_agent_init_lock(agent);
	atomic_store(&agent->is_alive, false);
	agent->is_unknown = true;
	agent->is_unheard = false;
	inherit_spaces(agent); /* now, as there are descriptors again */
	agent->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	error = agent->pagemap < 0 ? -errno : ksmemu_agent_set_up(agent);
	for (struct ksmemu_space *space = agent->spaces; space && !error; space = space->next)
		ksmemu_track_own(agent, space);
	if (!error)
		error = ksmemu_agent_start(agent);
	agent->has_thread = !error;
}

static void after_fork_in_child(void)
{
	for (struct ksmemu_agent *agent = ksmemu_agents; agent; agent = agent->next)
		inherit(agent);
	pthread_mutex_init(&ksmemu_agents_lock, NULL);
}

void ksmemu_watch_forks(void)
{
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
