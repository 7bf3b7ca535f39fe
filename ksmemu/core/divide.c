/*
 * The own object becomes an ancestor, before a fork: from now on nobody writes to it.
 *
 *   hold who would fill a hole ▶ own object: data private, holes from the new one ▶ let go ▶ tell ksmd
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"
#include "freeze.h"
#include "uapi.h"

/* A hole of so many pages between data is worth a mapping; shorter ones go with the data. */
#define HOLE_PAGES 512

/* Record writes to what is advised of [start, end), a part of the own object. */
static void track_advised(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
			  uintptr_t start, uintptr_t end)
{
	for (size_t i = 0; i < space->nr_advised; i++) {
		uintptr_t from = space->advised[i].start > start ? space->advised[i].start : start;
		uintptr_t to = space->advised[i].end < end ? space->advised[i].end : end;

		/* Fails as thaw() does: writes go unseen, and verify still compares bytes. */
		if (from < to)
			(void)ksmemu_track(agent, from, to);
	}
}

/* Show [start, end) of the old own object privately; or, where that holds nothing, the new one. */
int ksmemu_show(struct ksmemu_space *space, uintptr_t start, uintptr_t end, int new)
{
	int error = 0;

	for (uintptr_t stop; start < end && !error; start = stop) {
		int prot;

		stop = ksmemu_space_protection(space, start, end, &prot);
		if (new < 0) {
			error = ksmemu_space_inherit(space, start, stop, true);
			if (!error)
				error = ksmemu_map_ancestor(start, stop - start, prot,
							    space->own.file,
							    ksmemu_offset(space, start));
			continue;
		}
		error = ksmemu_map_own(start, stop - start, prot, new, ksmemu_offset(space, start));
	}
	return error;
}

/* Find data or a hole (whence) at or after an offset; *ret = end: there is none before that. */
static int seek(int object, off_t at, int whence, off_t end, off_t *ret)
{
	off_t found = lseek(object, at, whence);

	if (found < 0 && errno != ENXIO)
		return -errno;
	*ret = found < 0 || found > end ? end : found;
	return 0;
}

/* The next stretch of data at or after an offset, with the short holes in it; *start = end: there is none. */
static int next_data(int object, off_t *start, off_t *stop, off_t end)
{
	int error = seek(object, *start, SEEK_DATA, end, start);
	off_t next = *stop = *start;

	while (!error && next < end && next - *stop < HOLE_PAGES << KSMEMU_PAGE_SHIFT) {
		error = seek(object, next, SEEK_HOLE, end, stop);
		if (!error)
			error = seek(object, *stop, SEEK_DATA, end, &next);
	}
	return error;
}

/* SAFE: no page can appear in the object meanwhile (hold), so a hole is one until it is mapped anew. */
static int divide(struct ksmemu_agent *agent, struct ksmemu_space *space,
		  const struct ksmemu_mapping *mapping, int new)
{
	off_t at = ksmemu_offset(space, mapping->start);
	off_t end = ksmemu_offset(space, mapping->end);
	int error = 0;

	(void)agent;
	space->is_torn = true; /* until all is divided */
	while (at < end && !error) {
		off_t data = at, stop;

		error = next_data(space->own.file, &data, &stop, end);
		if (error)
			break;
		/* Without room for a mapping more the hole goes with the data: it shows zeros, too. */
		if (data > at && ksmemu_show(space, space->start + (uintptr_t)at,
					     space->start + (uintptr_t)data, new))
			data = at;
		if (stop > data)
			error = ksmemu_show(space, space->start + (uintptr_t)data,
					    space->start + (uintptr_t)stop, -1);
		at = stop > data ? stop : data;
	}
	return error;
}

static int track_mapping(struct ksmemu_agent *agent, struct ksmemu_space *space,
			 const struct ksmemu_mapping *mapping, int new)
{
	(void)new;
	track_advised(agent, space, mapping->start, mapping->end);
	return 0;
}

/*
 * Record writes to what shows the own object; where that fails it is as in track_advised(). Not while it is held:
 * the kernel would not let go of all at once.
 */
void ksmemu_track_own(struct ksmemu_agent *agent, struct ksmemu_space *space)
{
	if (agent->track >= 0)
		(void)ksmemu_each_mapping_of(agent, space, &space->own.inode, track_mapping, -1);
}

/* Find a number for a new ancestor; those that are not shown any more are forgotten. */
static int free_number(struct ksmemu_agent *agent, struct ksmemu_space *space, uint32_t *ret)
{
	bool is_shown[KSMEMU_MAX_ANCESTORS + 1] = { false };
	struct ksmemu_mapping found;
	struct ksmemu_walk walk;
	int error = ksmemu_walk_begin(&walk);

	if (error)
		return error;
	while ((error = ksmemu_walk_next(&walk, space->start, space->start + space->size, &found)) >
	       0)
		is_shown[ksmemu_ancestor_of(space, &found)] = true;
	ksmemu_walk_end(&walk);
	if (error)
		return error;
	for (uint32_t i = KSMEMU_MAX_ANCESTORS; i > 0; i--)
		if (!is_shown[i]) {
			ksmemu_holder_close(&space->ancestors[i - 1].holder);
			*ret = i;
		}
	if (*ret)
		return 0;
	*ret = 1;
	error = ksmemu_leave_ancestors(agent, space, space->start, space->start + space->size);
	if (!error)
		ksmemu_holder_close(&space->ancestors[0].holder);
	return error;
}

static void tell_of_fork(struct ksmemu_agent *agent, const struct ksmemu_space *space,
			 uint32_t number, int reader)
{
	const struct ksmemu_ancestor *ancestor = &space->ancestors[number - 1];
	const int fds[] = { reader, ancestor->holder.file };
	struct {
		struct ksmemu_report head;
		struct ksmemu_span span;
	} said = {
		.head = { .kind = KSMEMU_FORKED,
			  .space = space->id,
			  .id = ancestor->holder.name,
			  .epoch = space->epoch,
			  .nr_spans = 1 },
		.span = { .nr_pages = space->size >> KSMEMU_PAGE_SHIFT, .value = number },
	};

	/* Without a ksmd the next one is told. One that cannot be told all is to hear nothing more. */
	if (!atomic_load(&agent->is_alive))
		return;
	if (ksmemu_send(agent->order, &said, sizeof(said), fds, 2) ||
	    ksmemu_tell_mapped(agent, space, KSMEMU_INHERITED))
		shutdown(agent->order, SHUT_RDWR);
	else
		ksmemu_report(agent, space, KSMEMU_RESUMED, 0);
}

/* Make an empty own object, and a descriptor by which ksmd can read it. */
int ksmemu_new_own(const struct ksmemu_space *space, int *ret, int *ret_reader)
{
	struct ksmemu_holder reader = { .file = -1 };
	int error, own = memfd_create("ksmemu", MFD_CLOEXEC);

	if (own < 0)
		return -errno;
	error = ftruncate(own, (off_t)space->size) < 0 ? -errno : 0;
	if (!error && ret_reader)
		error = ksmemu_holder_open(own, O_RDONLY, &reader);
	if (error) {
		close(own);
		return error;
	}
	*ret = own;
	if (ret_reader)
		*ret_reader = reader.file;
	return 0;
}

/*
 * Hold, divide, let go. Whoever touches a hole sleeps in between; data can be read and written. One call for
 * the whole space: it may have tens of thousands of mappings. After an error the space may be torn.
 */
static int divide_all(struct ksmemu_agent *agent, struct ksmemu_space *space, int new)
{
	bool is_held = false;
	int error = 0;

	if (agent->track >= 0)
		error = ksmemu_uffd_unregister(agent->track, space->start, space->size);
	if (!error) {
		error = ksmemu_uffd_register(agent->freeze, space->start, space->size,
					     UFFDIO_REGISTER_MODE_MISSING);
		is_held = !error || error == -ENOMEM; /* all else is seen before any is */
	}
	if (!error && !ksmemu_is_broken("ancestor"))
		error = ksmemu_each_mapping_of(agent, space, &space->own.inode, divide, new);
	if (is_held)
		ksmemu_unfreeze(agent, space->start, space->size);
	ksmemu_uffd_wake(agent->freeze, space->start, space->size);
	return error;
}

/*
 * After an error that came in the middle the space is torn: some of its pages have been divided, and others show
 * the ancestor as if it were the own object still. That is right for this process, and for no child.
 */
int ksmemu_become_ancestor(struct ksmemu_agent *agent, struct ksmemu_space *space)
{
	struct ksmemu_ancestor ancestor = { .holder = { .file = -1 }, .inode = space->own.inode };
	int own = -1, reader = -1;
	uint32_t number = 0;
	int error = free_number(agent, space, &number);

	if (!error)
		error = ksmemu_new_own(space, &own, &reader);
	if (!error)
		error = ksmemu_holder_open(space->own.file, O_RDWR, &ancestor.holder);
	if (!error)
		error = divide_all(agent, space, own);
	if (error && !space->is_torn) {
		ksmemu_holder_close(&ancestor.holder);
		if (own >= 0) {
			close(own);
			close(reader);
		}
	} else {
		space->is_torn = error != 0;
		space->ancestors[number - 1] = ancestor;
		close(space->own.file);
		space->own = ksmemu_object(own);
		tell_of_fork(agent, space, number, reader);
		close(reader);
	}
	ksmemu_track_own(agent, space);
	return error;
}

/* What the ancestors of a torn space hold comes home, also what shows them as if they were its own. */
int ksmemu_mend(struct ksmemu_agent *agent, struct ksmemu_space *space)
{
	int error = ksmemu_leave_ancestors(agent, space, space->start, space->start + space->size);

	space->is_torn = error != 0;
	return error;
}
