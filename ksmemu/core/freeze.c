/*
 * Hold the writers of a range and let them go; record writes, and take up recording again. merge.c and rehome.c
 * are made of these.
 *
 *   track ──unregister──▶ (free) ──register──▶ freeze ──protect──▶ FROZEN ──unregister──▶ (free) ──▶ track
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "freeze.h"
#include "uapi.h"

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void ksmemu_note_freeze(uint64_t since, uint64_t *longest_ns)
{
	uint64_t held = now_ns() - since;

	if (held > *longest_ns)
		*longest_ns = held;
}

uint64_t ksmemu_fresh_slice(void)
{
	sched_yield();
	return now_ns();
}

int ksmemu_freeze(struct ksmemu_agent *agent, const struct ksmemu_space *space, uintptr_t start,
		  size_t size)
{
	bool is_held;
	int error;

	if (!ksmemu_is_broken("ours") && !ksmemu_is_ours(agent, space, start, start + size))
		return -EFAULT;
	/*
	 * SAFE: writes between here and the protect are not recorded, but they are before verify (or
	 * before the copy of rehome), which sees them; a thawed page counts as written.
	 */
	if (agent->track >= 0) {
		error = ksmemu_uffd_unregister(agent->track, start, size);
		if (error)
			return error;
	}
	error = ksmemu_uffd_register(agent->freeze, start, size, UFFDIO_REGISTER_MODE_WP);
	is_held = !error || error == -ENOMEM; /* all else is seen before any is */
	if (!error && !ksmemu_is_broken("freeze"))
		error = ksmemu_uffd_protect(agent->freeze, start, size);
	if (error && is_held)
		ksmemu_unfreeze(agent, start, size);
	return error;
}

void ksmemu_unfreeze(const struct ksmemu_agent *agent, uintptr_t start, size_t size)
{
	size_t half = size / 2 & ~(KSMEMU_PAGE_SIZE - 1);

	if (!ksmemu_uffd_unregister(agent->freeze, start, size))
		return;
	if (half) {
		ksmemu_unfreeze(agent, start, half);
		ksmemu_unfreeze(agent, start + half, size - half);
	} else {
		(void)ksmemu_uffd_unprotect(agent->freeze, start, size);
	}
}

int ksmemu_track(const struct ksmemu_agent *agent, uintptr_t start, uintptr_t end)
{
	if (agent->track < 0)
		return 0;
	return ksmemu_uffd_register(agent->track, start, end - start, UFFDIO_REGISTER_MODE_WP);
}

int ksmemu_arm(const struct ksmemu_agent *agent, uintptr_t start, uintptr_t end)
{
	int error = ksmemu_track(agent, start, end);

	if (error || agent->track < 0)
		return error;
	return ksmemu_uffd_protect(agent->track, start, end - start);
}

ssize_t ksmemu_read_by_force(uintptr_t address, void *bytes, size_t size)
{
	AUTO_CLOSE int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);

	return mem < 0 ? -1 : pread(mem, bytes, size, (off_t)address);
}
