/* What is mapped, as the kernel says: /proc/self/maps, the truth that no journal of ours replaces. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core.h"
#include "uapi.h"

/* What matters of a line comes before the path, within so many bytes. */
#define LINE_BYTES 128u

int ksmemu_walk_begin(struct ksmemu_walk *walk)
{
	walk->at = walk->filled = 0;
	walk->fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	return walk->fd < 0 ? -errno : 0;
}

void ksmemu_walk_end(struct ksmemu_walk *walk)
{
	close(walk->fd);
}

/* 1: a character; 0: the end; or -errno. */
static int next_character(struct ksmemu_walk *walk, char *ret)
{
	ssize_t got;

	if (walk->at == walk->filled) {
		got = read(walk->fd, walk->buffer, sizeof(walk->buffer));
		if (got <= 0)
			return got < 0 ? -errno : 0;
		walk->at = 0;
		walk->filled = (size_t)got;
	}
	*ret = walk->buffer[walk->at++];
	return 1;
}

/* Read the beginning of the next line, and pass over the rest of it. */
static int next_line(struct ksmemu_walk *walk, char line[LINE_BYTES])
{
	size_t length = 0;
	char character = 0;
	int got;

	while ((got = next_character(walk, &character)) > 0 && character != '\n')
		if (length < LINE_BYTES - 1)
			line[length++] = character;
	line[length] = '\0';
	return got;
}

int ksmemu_walk_next(struct ksmemu_walk *walk, uintptr_t start, uintptr_t end,
		     struct ksmemu_mapping *ret)
{
	char line[LINE_BYTES];
	int got;

	while ((got = next_line(walk, line)) > 0) {
		unsigned long low, high, offset, inode;
		unsigned int major, minor;

		if (sscanf(line, "%lx-%lx %*s %lx %x:%x %lu", &low, &high, &offset, &major, &minor,
			   &inode) != 6)
			return -EPROTO; /* no kernel says it otherwise */
		if (high <= start)
			continue;
		if (low >= end)
			return 0;
		*ret = (struct ksmemu_mapping){
			.start = low > start ? low : start,
			.end = high < end ? high : end,
			.offset = (off_t)(low > start ? offset : offset + (start - low)),
			.inode = { makedev(major, minor), inode },
		};
		return 1;
	}
	return got;
}

struct stat ksmemu_status(int file)
{
	struct stat status = { .st_ino = 0 };

	(void)fstat(file, &status);
	return status;
}

struct ksmemu_object ksmemu_object(int file)
{
	struct stat status = ksmemu_status(file);

	return (struct ksmemu_object){ file, { status.st_dev, status.st_ino } };
}

bool ksmemu_is_of(const struct ksmemu_mapping *mapping, const struct ksmemu_inode *inode)
{
	return mapping->inode.number == inode->number && mapping->inode.device == inode->device;
}

int ksmemu_each_mapping_of(struct ksmemu_agent *agent, struct ksmemu_space *space,
			   const struct ksmemu_inode *inode, ksmemu_act *act, int object)
{
	struct ksmemu_mapping found;
	struct ksmemu_walk walk;
	int error = ksmemu_walk_begin(&walk);

	if (error)
		return error;
	while (!error && (error = ksmemu_walk_next(&walk, space->start, space->start + space->size,
						   &found)) > 0)
		error = ksmemu_is_of(&found, inode) ? act(agent, space, &found, object) : 0;
	ksmemu_walk_end(&walk);
	return error;
}

uint32_t ksmemu_ancestor_of(const struct ksmemu_space *space, const struct ksmemu_mapping *mapping)
{
	for (uint32_t i = 0; i < KSMEMU_MAX_ANCESTORS; i++) {
		const struct ksmemu_ancestor *ancestor = &space->ancestors[i];

		if (ancestor->holder.file >= 0 && ksmemu_is_of(mapping, &ancestor->inode))
			return i + 1;
	}
	return 0;
}

/* 0; -ENOENT: nothing is mapped there; or -errno: the kernel does not tell. */
static int find(const struct ksmemu_agent *agent, uintptr_t address, struct ksmemu_mapping *ret)
{
	struct procmap_query query = { .size = sizeof(query), .query_addr = address };

	if (ioctl(agent->maps, PROCMAP_QUERY, &query) < 0)
		return -errno;
	*ret = (struct ksmemu_mapping){
		.start = query.vma_start,
		.end = query.vma_end,
		.offset = (off_t)query.vma_offset,
		.inode = { makedev(query.dev_major, query.dev_minor), query.inode },
	};
	return 0;
}

bool ksmemu_mapping_at(const struct ksmemu_agent *agent, uintptr_t address,
		       struct ksmemu_mapping *ret)
{
	return find(agent, address, ret) == 0;
}

bool ksmemu_is_ours(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
		    uintptr_t start, uintptr_t end)
{
	while (start < end) {
		struct ksmemu_mapping found;
		int error = find(agent, start, &found);

		if (error)
			return error != -ENOENT;
		if (found.inode.number && !ksmemu_is_of(&found, &space->own.inode) &&
		    !ksmemu_is_of(&found, &agent->pool.inode) && !ksmemu_ancestor_of(space, &found))
			return false;
		start = found.end;
	}
	return true;
}
