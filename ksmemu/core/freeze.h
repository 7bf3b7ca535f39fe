/* What merge.c and rehome.c are made of (freeze.c). Agent.lock held; nothing here allocates. */
#ifndef KSMEMU_FREEZE_H
#define KSMEMU_FREEZE_H

#include "core.h"

/**
 * ksmemu_fresh_slice() - let others run first who wait for the processor; return the time
 *
 * Whoever is put off the processor while it holds writers holds them until it is back. A freeze that begins
 * with a slice of its own mostly ends in it.
 */
uint64_t ksmemu_fresh_slice(void);

/** ksmemu_note_freeze() - writers were held from `since` until now: raise the longest so far to that */
void ksmemu_note_freeze(uint64_t since, uint64_t *longest_ns);

/** ksmemu_frame_of() - what page i of a run is to show; zeros continue themselves */
static inline uint64_t ksmemu_frame_of(const struct ksmemu_run *run, uint32_t i)
{
	return run->frame == KSMEMU_FRAME_ZERO ? run->frame : run->frame + i;
}

/**
 * ksmemu_freeze() - hold every writer of the range
 * Return: 0: the caller owes thaw and wake; or -errno: it owes the wake, and all is as it was, a protection by a
 * userfaultfd of the program's too. -EFAULT: the program has mapped something else.
 */
int ksmemu_freeze(struct ksmemu_agent *agent, const struct ksmemu_space *space, uintptr_t start,
		  size_t size);

/**
 * ksmemu_unfreeze() - let the writers of a range go on that still shows what it did; the wake is the caller's
 *
 * The kernel refuses the whole range for one page that is no longer ours (EINVAL), or for want of memory.
 * What it refuses is let go by halves, and a page at least unprotected: no writer may sleep for ever.
 */
void ksmemu_unfreeze(const struct ksmemu_agent *agent, uintptr_t start, size_t size);

/** ksmemu_read_by_force() - read also where mprotect(2) forbids it; as pread(2) */
ssize_t ksmemu_read_by_force(uintptr_t address, void *bytes, size_t size);

/** ksmemu_track() - record writes to a range of the own object from now on (the first half of arm) */
int ksmemu_track(const struct ksmemu_agent *agent, uintptr_t start, uintptr_t end);

/** ksmemu_arm() - record writes from now on, and take what is there as read */
int ksmemu_arm(const struct ksmemu_agent *agent, uintptr_t start, uintptr_t end);

#endif
