/*
 * The C core: mechanism only, no policy, no Python, no GIL.
 *
 * All functions return 0 or -errno unless they say otherwise; out-parameters come last and are
 * untouched on error. Addresses and sizes are in bytes and page-aligned; [start, end) is half-open.
 *
 * LOCK ORDER
 *   agents_lock            the list of agents of this process; taken by create, destroy and fork
 *     agent.lock           mappings of the agent's spaces, its table of spaces, the order of reports
 *
 * agent.lock is never held by a thread that writes to the memory of a space, so a frozen writer never
 * holds it. Between freeze and wake the core allocates nothing and calls nothing but the system.
 */
#ifndef KSMEMU_CORE_H
#define KSMEMU_CORE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "wire.h"

#define KSMEMU_PAGE_SHIFT 12
#define KSMEMU_PAGE_SIZE ((size_t)1 << KSMEMU_PAGE_SHIFT)

/*
 * Most pages frozen at once: bounds how long a writer can sleep. A longer run is merged window by
 * window; the kernel joins the mappings again.
 */
#define KSMEMU_WINDOW_PAGES 128u

/* The pages among which renewals, at most a window of them, share a freeze. */
#define KSMEMU_RENEW_PAGES 512u

/* The same for rehome, which copies under freeze and so holds a page longer. */
#define KSMEMU_REHOME_PAGES 64u

/* Most populated pages that adopting ordinary memory copies at once: bounds what is held twice. */
#define KSMEMU_ADOPT_PAGES 4096u

/* How long ksmd is waited for, to take a message or to answer one: it does so between two slices of a scan. */
#define KSMEMU_PATIENCE_SECONDS 10

/* Test-only build: a step that can be left out, to show that its guarantee's test would notice. */
#ifdef KSMEMU_BREAKS
bool ksmemu_is_broken(const char *step);
#else
#define ksmemu_is_broken(step) false
#endif

struct ksmemu_range {
	uint64_t start;
	uint64_t end;
};

/* Addresses that the application may not read and write (mprotect), and what it may: PROT_*. */
struct ksmemu_protection {
	uint64_t start;
	uint64_t end;
	uint64_t prot;
};

/* What was told of a range of a space, and is to be told again to a new ksmd. */
struct ksmemu_note {
	uint64_t start;
	uint64_t end;
	uint32_t kind; /* enum ksmemu_report_kind */
	uint32_t value;
};

/* Most objects whose pages one space shows besides its own: before another fork all of them come home. */
#define KSMEMU_MAX_ANCESTORS 16u

/* What the kernel calls an object, whoever opens or maps it. */
struct ksmemu_inode {
	dev_t device;
	ino_t number; /* 0: of none */
};

/* An open object, and its inode: asked once, as each freeze looks what is mapped. */
struct ksmemu_object {
	int file;
	struct ksmemu_inode inode;
};

/*
 * An open file by which ksmd knows that a process may map an object: it carries a lock on the byte that is its
 * name, and lives as long as the process does.
 */
struct ksmemu_holder {
	int file;
	uint64_t name;
};

/*
 * What was the own object until a fork: nobody writes to it, and parent and child show its pages privately. The
 * holder's file can write, so that ksmd can give back what nobody shows any more.
 */
struct ksmemu_ancestor {
	struct ksmemu_holder holder;
	struct ksmemu_inode inode;
};

/* What a child takes in the place of what its parent has; own is -1 where it does not inherit the space. */
struct ksmemu_heritage {
	int own;
	bool is_mapped; /* the child has the mappings */
	struct ksmemu_holder holders[KSMEMU_MAX_ANCESTORS];
};

/* One address space of this process, as its agent sees it. Under agent.lock. */
struct ksmemu_space {
	uint32_t id;
	uint32_t epoch;
	uintptr_t start;
	size_t size;
	uint32_t node;
	struct ksmemu_object own; /* page n of the space is page n of the object */
	size_t nr_advised;
	struct ksmemu_range *advised; /* mergeable addresses: ascending, apart from each other */
	size_t nr_protections;
	struct ksmemu_protection *protections; /* ascending; elsewhere it may read and write */
	size_t nr_notes;
	struct ksmemu_note *notes;
	struct ksmemu_ancestor ancestors[KSMEMU_MAX_ANCESTORS]; /* unused: holder.file is -1 */
	unsigned char
		*is_inherited; /* a bit for each page that shows an ancestor; NULL before a fork */
	struct ksmemu_heritage heritage; /* only during a fork */
	bool is_withheld;		 /* children do not get the mappings */
	bool is_torn; /* a fork has divided some of it, and failed: the rest shows the ancestor as its own */
	struct ksmemu_space *next;
};

/* How a process joined its ksmd, and will join the next one. */
struct ksmemu_terms {
	char *directory; /* of the instance */
	char label
		[65]; /* of the security domain; letters, digits, and what needs no escape in JSON */
	bool tracks;  /* writes are recorded (6.7); otherwise ksmd compares checksums */
	bool rfc2009;
	bool secure;	/* frames are mapped evenly */
	bool merge_any; /* what prctl(2) would say: changes */
	bool refuses;
};

/* What joins this process to one ksmd. */
struct ksmemu_agent {
	pthread_mutex_t lock;
	pthread_cond_t joined; /* is_alive is true again */
	pthread_t thread;
	struct ksmemu_terms terms;
	uid_t ksmd; /* who runs it; the next one is to be run by the same */
	int stop;   /* eventfd: readable when the thread is to end */
	int control;
	int order;		     /* order socket */
	struct ksmemu_object pool;   /* read-only, to map */
	struct ksmemu_holder holder; /* of the pool; read-only */
	struct ksmemu_holder child;  /* the same for a child, during a fork */
	int pagemap;		     /* /proc/self/pagemap */
	int maps;		     /* /proc/self/maps */
	int track;  /* userfaultfd that records writes; -1 with the checksum tracker */
	int freeze; /* userfaultfd that holds writers */
	const unsigned char *frames; /* the whole pool, read-only, to verify against */
	size_t pool_bytes;
	struct ksmemu_space *spaces;
	struct ksmemu_agent *next;
	_Atomic bool is_alive; /* set by the thread: whether ksmd listens; read by anyone */
	bool is_cut_off;       /* by us: a report could not be sent */
	bool is_unknown;       /* a forked child that no ksmd has heard of yet */
	bool is_unheard;       /* it has joined, and no order has come since */
	bool has_thread;       /* not so in a child that could not get one */
	/* The agent thread may not allocate: room for one order and its report. */
	struct {
		struct ksmemu_order head;
		struct ksmemu_run runs[KSMEMU_ORDER_MAX_PAGES];
	} inbox;
	struct {
		struct ksmemu_report head;
		struct ksmemu_span spans[KSMEMU_ORDER_MAX_PAGES];
	} outbox;
};

/* ---- uffd.c: the two userfaultfds ---------------------------------------------------------- */

/**
 * ksmemu_uffd_open() - open a userfaultfd and agree on features
 * @features: UFFD_FEATURE_* that must be there; 0: none
 * @ret_features: all that the kernel offers, may be NULL
 * @ret_user_mode: whether faults of system calls are out of its reach, may be NULL
 *
 * Tries the plain call, then /dev/userfaultfd, then user mode only.
 * Return: the descriptor (close-on-exec), or -errno; -EINVAL: the kernel lacks a feature.
 */
int ksmemu_uffd_open(uint64_t features, uint64_t *ret_features, bool *ret_user_mode);

/**
 * ksmemu_uffd_register() - let a userfaultfd watch a range
 * @mode: UFFDIO_REGISTER_MODE_*
 * Return: 0 or -errno; -EBUSY: another userfaultfd watches it; -EINVAL: nothing mapped.
 */
int ksmemu_uffd_register(int uffd, uintptr_t start, size_t size, uint64_t mode);

/** ksmemu_uffd_unregister() - stop watching; protections go with it, sleepers are NOT woken */
int ksmemu_uffd_unregister(int uffd, uintptr_t start, size_t size);

/** ksmemu_uffd_protect() - write-protect a registered range; -ENOENT: not registered */
int ksmemu_uffd_protect(int uffd, uintptr_t start, size_t size);

/** ksmemu_uffd_unprotect() - let writes to a registered range go on; -ENOENT: not registered */
int ksmemu_uffd_unprotect(int uffd, uintptr_t start, size_t size);

/** ksmemu_uffd_wake() - wake whoever sleeps on a fault in the range; they fault again. Cannot fail */
void ksmemu_uffd_wake(int uffd, uintptr_t start, size_t size);

/* ---- harvest.c: what was written, what was copied, where data is ----------------------------- */

/* Who reads a pagemap: ksmd, on the descriptor the worker handed over; the worker, on its own. */

/**
 * ksmemu_harvest() - find what was written since the last harvest, and re-arm it in the same walk
 * @pagemap: pagemap descriptor of the worker
 * @start: first address; advanced to where the walk stopped
 * @end: end address
 * @ret: filled with written ranges, ascending
 * @max: room in @ret
 * @ret_nr: ranges filled
 *
 * Call again while *start < end. Mappings that the track userfaultfd does not watch are passed over.
 * Pages that were never touched may be named once: ask ksmemu_data_extents() whether they hold data.
 * Return: 0; -ENOTTY: kernel before 6.7; -ESRCH: the worker is gone.
 */
int ksmemu_harvest(int pagemap, uint64_t *start, uint64_t end, struct ksmemu_range *ret, size_t max,
		   size_t *ret_nr);

/**
 * ksmemu_find_private() - find private anonymous pages, in memory or swapped out
 * @zero_too: whether to name pages that show the kernel's zero page as well
 *
 * Over pool mappings these are the BROKEN pages: what the kernel copied on write. Otherwise as
 * ksmemu_harvest(), but nothing is changed. Before 6.7 it reads pagemap entries, where the zero page
 * cannot be told from a copy; @max is at least 1024 there.
 */
int ksmemu_find_private(int pagemap, bool zero_too, uint64_t *start, uint64_t end,
			struct ksmemu_range *ret, size_t max, size_t *ret_nr);

/** ksmemu_probe_pagemap_scan() - 0 where the kernel has PAGEMAP_SCAN, else -errno (-ENOTTY) */
int ksmemu_probe_pagemap_scan(void);

/**
 * ksmemu_data_extents() - find where an object holds data
 * @fd: the object
 * @start: first offset in bytes; advanced to where the search stopped
 * Call again while *start < end.
 */
int ksmemu_data_extents(int fd, uint64_t *start, uint64_t end, struct ksmemu_range *ret, size_t max,
			size_t *ret_nr);

/* ---- checksum.c: reading pages (ksmd) -------------------------------------------------------- */

/**
 * ksmemu_checksum_pages() - fingerprint pages of an object
 * @fd: the object, readable
 * @pages: page numbers, ascending for speed
 * @seed: of this instance, so that nobody can prepare a collision
 * @ret: one 64-bit XXH3 a page
 *
 * Reads by pread(), not through a mapping: no fault a page, no SIGBUS from an object that its owner
 * shrinks, no page allocated by reading a hole. Thread-safe.
 * Return: 0 or -errno; -ENODATA: the object ends before a page.
 */
int ksmemu_checksum_pages(int fd, const uint64_t *pages, size_t nr, uint64_t seed, uint64_t *ret);

/**
 * ksmemu_fill_frames() - copy pages of an object to frames of the pool, and fingerprint the frames
 * @fd: the object
 * @pool: the pool, writable (ksmd alone has that)
 * @ret: fingerprint of what each frame now holds
 * Return: 0 or -errno; -ENODATA as above; -ENOSPC: no room for the pool, some frames are filled.
 */
int ksmemu_fill_frames(int fd, const uint64_t *pages, int pool, const uint64_t *frames, size_t nr,
		       uint64_t seed, uint64_t *ret);

/* ---- remap.c: the only mmap(MAP_FIXED) in the tree ------------------------------------------- */

/** ksmemu_reserve() - set addresses aside: no memory, no access, nobody else's mapping */
int ksmemu_reserve(size_t size, uintptr_t *ret);

/** ksmemu_unreserve() - give the addresses back */
int ksmemu_unreserve(uintptr_t start, size_t size);

/*
 * Each replaces what is mapped at [start, start + size), atomically. 0 or -errno (-ENOMEM). @prot is what the
 * application may do there: a new mapping does not inherit it.
 */
int ksmemu_map_nothing(uintptr_t start, size_t size);
int ksmemu_map_ordinary(uintptr_t start, size_t size);
int ksmemu_map_own(uintptr_t start, size_t size, int prot, int own, off_t offset);
int ksmemu_map_frames(uintptr_t start, size_t size, int prot, int pool, off_t offset);
int ksmemu_map_zero(uintptr_t start, size_t size, int prot);
int ksmemu_map_ancestor(uintptr_t start, size_t size, int prot, int object, off_t offset);

/**
 * ksmemu_map_frames_evenly() - the same as ksmemu_map_frames(), at several times the price
 *
 * How long the first read or write of a page takes does not tell with how many others it is in one mapping, and
 * so not whether its frame follows that of its neighbour, or was there before.
 */
int ksmemu_map_frames_evenly(uintptr_t start, size_t size, int prot, int pool, off_t offset);

/** ksmemu_protect() - mprotect(2); 0 or -errno (-ENOMEM, -EACCES) */
int ksmemu_protect(uintptr_t start, size_t size, int prot);

/** ksmemu_punch() - give [offset, offset + size) of an object back to the host; it reads as zeros */
int ksmemu_punch(int object, off_t offset, size_t size);

/* ---- space.c: the table of spaces ------------------------------------------------------------ */

/* All under agent.lock. */
struct ksmemu_space *ksmemu_space_find(struct ksmemu_agent *agent, uint32_t id);

/** ksmemu_space_is_advised() - whether all of [start, end) is mergeable */
bool ksmemu_space_is_advised(const struct ksmemu_space *space, uint64_t start, uint64_t end);

/** ksmemu_copy() - memory of its own for a list, also an empty one; NULL: there is none. Not the agent thread */
void *ksmemu_copy(const void *list, size_t size);

/** ksmemu_space_set_advised() - swap the mergeable ranges for others (ksmemu_copy()) */
void ksmemu_space_set_advised(struct ksmemu_space *space, struct ksmemu_range **advised, size_t nr);

/**
 * ksmemu_space_protection() - what the application may do at an address
 * @ret_prot: PROT_*
 * Return: how far towards @end the same holds.
 */
uintptr_t ksmemu_space_protection(const struct ksmemu_space *space, uintptr_t start, uintptr_t end,
				  int *ret_prot);

/** ksmemu_space_set_protections() - the same for all protections */
void ksmemu_space_set_protections(struct ksmemu_space *space,
				  struct ksmemu_protection **protections, size_t nr);

/** ksmemu_space_set_notes() - the same for all notes */
void ksmemu_space_set_notes(struct ksmemu_space *space, struct ksmemu_note **notes, size_t nr);

/**
 * ksmemu_space_inherit() - note whether the pages at [start, end) show an ancestor
 * Return: 0; -ENOMEM, only the first time that some do.
 */
int ksmemu_space_inherit(struct ksmemu_space *space, uintptr_t start, uintptr_t end, bool on);

/** ksmemu_space_is_inherited() - whether the page at an address shows an ancestor */
bool ksmemu_space_is_inherited(const struct ksmemu_space *space, uintptr_t address);

/** ksmemu_space_drop() - close the own object and free the entry; the caller has unlinked it */
void ksmemu_space_drop(struct ksmemu_space *space);

/** ksmemu_spaces_drop() - the same for all spaces of an agent */
void ksmemu_spaces_drop(struct ksmemu_agent *agent);

static inline off_t ksmemu_offset(const struct ksmemu_space *space, uintptr_t address)
{
	return (off_t)(address - space->start);
}

/* ---- merge.c, rehome.c: the transactions ----------------------------------------------------- */

/* Errors of a transaction, one a page of the window: 0, or an errno. The caller's memory. */
struct ksmemu_verdict {
	uint64_t nr_pages;
	int32_t error[KSMEMU_WINDOW_PAGES];
};

/**
 * ksmemu_merge_window() - freeze, verify, remap, wake, punch
 * @runs: runs of OWN pages inside one window of KSMEMU_WINDOW_PAGES, ascending; the pages between
 *	them are OWN
 * @verdict: an errno for each page from the first run's first to the last run's last; pages between
 *	runs get 0
 * @frozen_ns: raised to how long writers were held
 *
 * A page with an error is OWN again: EAGAIN, its bytes differ from the frame's; ENOMEM, no mapping
 * left (vm.max_map_count).
 * Context: agent thread, agent.lock held. Every freeze ends in a wake.
 */
void ksmemu_merge_window(struct ksmemu_agent *agent, struct ksmemu_space *space,
			 const struct ksmemu_run *runs, size_t nr, struct ksmemu_verdict *verdict,
			 uint64_t *frozen_ns);

/**
 * ksmemu_renew() - let private copies that are equal to their frames show these again
 * @runs: of MERGED, ZERO or BROKEN pages, at most KSMEMU_WINDOW_PAGES of them within KSMEMU_RENEW_PAGES; all that
 *	lies between is under one protection
 * @ret: for each page from the first on 0 or an errno: EAGAIN, it differs or may not be read; ENOMEM, no mapping
 *	left. It shows what it did. Pages between runs get nothing.
 *
 * The way of a page that was written with what it held, or that got back what it had: a fraction of the
 * way home, through a scan and back.
 * Context: agent thread, agent.lock held. Every freeze ends in a wake.
 */
void ksmemu_renew(struct ksmemu_agent *agent, struct ksmemu_space *space,
		  const struct ksmemu_run *runs, size_t nr, int32_t *ret, uint64_t *frozen_ns);

/**
 * ksmemu_rehome() - bring the bytes at [start, end) back to the own object
 *
 * What the addresses show is written to the own object, which is then mapped over them and armed.
 * MERGED, ZERO and BROKEN pages become OWN; OWN pages stay so.
 * Return: 0, or -errno (-ENOSPC, -ENOMEM): nothing changed.
 * Context: agent.lock held; at most KSMEMU_REHOME_PAGES, all under one protection.
 */
int ksmemu_rehome(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
		  uintptr_t end, uint64_t *frozen_ns);

/** ksmemu_rehome_all() - the same for any length; agent.lock held, 0 or -errno of the first failure */
int ksmemu_rehome_all(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
		      uintptr_t end);

/** ksmemu_leave_ancestors() - rehome what shows ancestors in [start, end); agent.lock held */
int ksmemu_leave_ancestors(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
			   uintptr_t end);

/**
 * ksmemu_adopt() - move ordinary anonymous memory at [start, end) into the own object
 * @ret_done: end address of what was moved; equal to @end on success
 *
 * Other threads may read and write throughout. Pages never touched stay holes.
 * Return: 0 or -errno (-ENOSPC, -ENOMEM): [*ret_done, end) is ordinary memory still, and writes to what is in
 * the object may go unrecorded.
 * Context: agent.lock held.
 */
int ksmemu_adopt(struct ksmemu_agent *agent, struct ksmemu_space *space, uintptr_t start,
		 uintptr_t end, uintptr_t *ret_done);

/* ---- mappings.c: what is mapped, as the kernel says ------------------------------------------- */

/* One mapping of this process; a line of /proc/self/maps. */
struct ksmemu_mapping {
	uintptr_t start;
	uintptr_t end;
	off_t offset;
	struct ksmemu_inode inode; /* of none: anonymous */
};

/* A walk through /proc/self/maps that allocates nothing. */
struct ksmemu_walk {
	int fd;
	size_t at;
	size_t filled;
	char buffer[4096];
};

/** ksmemu_walk_begin() - begin a walk through all mappings, ascending; 0 or -errno */
int ksmemu_walk_begin(struct ksmemu_walk *walk);

/**
 * ksmemu_walk_next() - find the next mapping that has a part in [start, end), cut to it
 * Return: 1: @ret holds one; 0: there are no more; or -errno.
 */
int ksmemu_walk_next(struct ksmemu_walk *walk, uintptr_t start, uintptr_t end,
		     struct ksmemu_mapping *ret);

void ksmemu_walk_end(struct ksmemu_walk *walk);

/** ksmemu_mapping_at() - find the mapping at an address; false: there is none, or nobody tells (before 6.11) */
bool ksmemu_mapping_at(const struct ksmemu_agent *agent, uintptr_t address,
		       struct ksmemu_mapping *ret);

/**
 * ksmemu_is_ours() - whether all of [start, end) shows an object of the space, frames, or anonymous memory
 *
 * A program that unmaps a piece of a space by itself may find another mapping there. Before Linux 6.11 nobody
 * can tell at this price, and the answer is yes.
 */
bool ksmemu_is_ours(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
		    uintptr_t start, uintptr_t end);

/** ksmemu_status() - what the kernel says of an open object: cannot fail, its file system asks nobody */
struct stat ksmemu_status(int file);

/** ksmemu_object() - which object a descriptor, or -1, stands for */
struct ksmemu_object ksmemu_object(int file);

/** ksmemu_is_of() - whether a mapping shows the object of that inode */
bool ksmemu_is_of(const struct ksmemu_mapping *mapping, const struct ksmemu_inode *inode);

/* What to do with a mapping of a space; 0 or -errno. @object: what may take its place, for who needs one. */
typedef int ksmemu_act(struct ksmemu_agent *agent, struct ksmemu_space *space,
		       const struct ksmemu_mapping *mapping, int object);

/**
 * ksmemu_each_mapping_of() - apply to every mapping in a space that shows the object of that inode
 * Return: 0, or -errno of the first that failed, where it ends.
 */
int ksmemu_each_mapping_of(struct ksmemu_agent *agent, struct ksmemu_space *space,
			   const struct ksmemu_inode *inode, ksmemu_act *act, int object);

/** ksmemu_ancestor_of() - which ancestor a mapping shows, counted from 1; 0: none */
uint32_t ksmemu_ancestor_of(const struct ksmemu_space *space, const struct ksmemu_mapping *mapping);

/* ---- holder.c: who may map an object ---------------------------------------------------------- */

/**
 * ksmemu_holder_open() - open an object once more, and give that file a name that nobody has
 * @flags: O_RDONLY or O_RDWR
 */
int ksmemu_holder_open(int object, int flags, struct ksmemu_holder *ret);

/** ksmemu_holder_close() - close it, if it is open */
void ksmemu_holder_close(struct ksmemu_holder *holder);

/* ---- agent.c: the thread that takes orders ----------------------------------------------------- */

/** ksmemu_serve() - body of the agent thread: take orders until it is to end, or ksmd talks garbage */
void *ksmemu_serve(void *agent);

/* ---- tell.c: what ksmd is told -------------------------------------------------------------------- */

/**
 * ksmemu_limit_patience() - let a send or connect on a socket end with EAGAIN after KSMEMU_PATIENCE_SECONDS
 *
 * A ksmd that is stopped reads nothing: whoever fills its socket, often under agent.lock, would wait with it.
 */
void ksmemu_limit_patience(int sock);

/**
 * ksmemu_send() - send a message with descriptors beside it
 * Return: 0 or -errno.
 */
int ksmemu_send(int sock, const void *bytes, size_t size, const int *fds, size_t nr_fds);

/** ksmemu_send_report() - send agent->outbox as it is; who cannot, parts with ksmd. agent.lock held */
void ksmemu_send_report(struct ksmemu_agent *agent);

/** ksmemu_report() - tell ksmd of spans in agent->outbox.spans; agent.lock held since the change */
void ksmemu_report(struct ksmemu_agent *agent, const struct ksmemu_space *space, uint32_t kind,
		   uint32_t nr_spans);

/** ksmemu_tell_advised() - report what is mergeable, and what else was told of ranges of a space */
void ksmemu_tell_advised(struct ksmemu_agent *agent, const struct ksmemu_space *space);

/** ksmemu_tell_mapped() - report what shows frames and zeros (KSMEMU_MAPPED), or ancestors (KSMEMU_INHERITED) */
int ksmemu_tell_mapped(struct ksmemu_agent *agent, const struct ksmemu_space *space, uint32_t kind);

/* ---- resume.c: join the next ksmd ---------------------------------------------------------------- */

/**
 * ksmemu_resume() - wait for the next ksmd at the same place, and join it with the memory as it is
 *
 * The new ksmd knows nothing: it is told the spaces, what of them is mergeable, and what is merged with which
 * frame. So nothing is unmerged, and it need not trust what another ksmd has written down.
 * Return: true: joined; false: the thread is to end.
 * Context: agent thread, no lock held.
 */
bool ksmemu_resume(struct ksmemu_agent *agent);

/* ---- divide.c: the own object becomes an ancestor, before a fork ------------------------------------ */

/**
 * ksmemu_become_ancestor() - show what a space holds privately, and give it a new own object
 * Return: 0; or -errno: nothing changed, or the space is torn (is_torn).
 *
 * All of divide.c: the application's thread that forks, agent.lock held.
 */
int ksmemu_become_ancestor(struct ksmemu_agent *agent, struct ksmemu_space *space);

/** ksmemu_mend() - bring home what the ancestors of a torn space hold; 0, or -errno: it is torn still */
int ksmemu_mend(struct ksmemu_agent *agent, struct ksmemu_space *space);

/**
 * ksmemu_new_own() - make an empty own object
 * @ret_reader: a descriptor by which ksmd can read it; NULL: none
 */
int ksmemu_new_own(const struct ksmemu_space *space, int *ret, int *ret_reader);

/** ksmemu_show() - map @new at [start, end), or where that is -1 the own object, privately: an ancestor */
int ksmemu_show(struct ksmemu_space *space, uintptr_t start, uintptr_t end, int new);

/** ksmemu_track_own() - record writes to what is advised and shows the own object; where that fails they go unseen */
void ksmemu_track_own(struct ksmemu_agent *agent, struct ksmemu_space *space);

/* ---- fork.c: parent and child keep their own memory ------------------------------------------------ */

/** ksmemu_watch_forks() - let every fork of this process from now on divide its spaces; once is enough */
void ksmemu_watch_forks(void);

/* ---- attach.c: join a ksmd and leave it ---------------------------------------------------------- */

/* What ksmd and the application hand to an agent. */
struct ksmemu_descriptors {
	int control;
	int order;
	int pool; /* read-only */
	struct ksmemu_holder holder;
	int pagemap;
};

/**
 * ksmemu_agent_create() - join a ksmd: take its orders in a thread of our own
 * @fds: the agent owns them from here on, also on error
 * @pool_bytes: size of the pool
 * @terms: copied
 *
 * The thread takes no GIL, allocates nothing, blocks all signals, and ends on destroy. When ksmd goes it
 * waits for the next one. A forked child has an agent of its own by the same handle.
 */
int ksmemu_agent_create(const struct ksmemu_descriptors *fds, size_t pool_bytes,
			const struct ksmemu_terms *terms, struct ksmemu_agent **ret);

/* What attach.c and fork.c share: all agents of this process, under agents_lock; and how one is set up. */
extern pthread_mutex_t ksmemu_agents_lock;
extern struct ksmemu_agent *ksmemu_agents;
void ksmemu_agent_init_lock(struct ksmemu_agent *agent);
int ksmemu_agent_set_up(
	struct ksmemu_agent *agent); /* userfaultfds, what stops the thread, frames */
int ksmemu_agent_start(struct ksmemu_agent *agent);  /* the thread */
void ksmemu_agent_close(struct ksmemu_agent *agent); /* all descriptors, but not those of spaces */

/** ksmemu_agent_destroy() - stop the thread, close all; accepts NULL. Spaces keep their mappings. */
void ksmemu_agent_destroy(struct ksmemu_agent *agent);

/** ksmemu_agent_is_alive() - whether ksmd listens; a forked child joins soon */
bool ksmemu_agent_is_alive(struct ksmemu_agent *agent);

/** ksmemu_agent_wait() - wait until ksmd listens; 0, or -ETIMEDOUT */
int ksmemu_agent_wait(struct ksmemu_agent *agent, unsigned int seconds);

/** ksmemu_agent_control() - a second descriptor of the control socket, the caller's; or -errno */
int ksmemu_agent_control(struct ksmemu_agent *agent);

/** ksmemu_agent_own() - a second descriptor of the own object of a space, the caller's; or -errno (-ENOENT) */
int ksmemu_agent_own(struct ksmemu_agent *agent, uint32_t id);

/** ksmemu_agent_set_flags() - what prctl(2) would say, for the next ksmd; this one is told by the caller */
void ksmemu_agent_set_flags(struct ksmemu_agent *agent, bool merge_any, bool refuses);

/* ---- advise.c: what the application's threads ask of their agent --------------------------------- */

/** ksmemu_agent_add_space() - let the agent know a space; @own is the agent's from here on, unless it fails */
int ksmemu_agent_add_space(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, size_t size,
			   uint32_t node, int own);

/**
 * ksmemu_agent_remove_space() - unmap all of a space, close its own object, tell ksmd
 *
 * The addresses are nobody's afterwards. Return: 0; -ENOENT; -ENOMEM: nothing changed.
 */
int ksmemu_agent_remove_space(struct ksmemu_agent *agent, uint32_t id);

/**
 * ksmemu_agent_advise() - make [start, end) mergeable
 * @adopt: it is ordinary memory so far: move it to the own object first
 * @advised, @nr: the space's mergeable ranges with this one in them
 * @ret_done: as ksmemu_adopt()
 */
int ksmemu_agent_advise(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
			bool adopt, const struct ksmemu_range *advised, size_t nr,
			uintptr_t *ret_done);

/**
 * ksmemu_agent_withdraw() - refuse merges outside @advised from now on (first step of unadvise)
 */
int ksmemu_agent_withdraw(struct ksmemu_agent *agent, uint32_t id,
			  const struct ksmemu_range *advised, size_t nr);

/**
 * ksmemu_agent_protect() - mprotect(2) [start, end), and keep it through merge and rehome
 * @protections, @nr: the space's, with this one in them
 *
 * Return: 0 or -errno: nothing changed.
 */
int ksmemu_agent_protect(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
			 int prot, const struct ksmemu_protection *protections, size_t nr);

/** ksmemu_agent_rehome() - rehome any length, window by window; 0 or -errno of the first failure */
int ksmemu_agent_rehome(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end);

/** ksmemu_agent_unadvised() - all of [start, end) is OWN: stop recording, tell ksmd */
int ksmemu_agent_unadvised(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end);

/**
 * ksmemu_agent_tell() - tell ksmd of [start, end): KSMEMU_UNSHAREABLE, _ADVISED (after that), _REFUSED, _BOUND
 *
 * Nothing is moved: what is merged stays merged. What was unshareable stays among the @advised ranges of the
 * calls above: ksmd may still order what is merged there home.
 */
int ksmemu_agent_tell(struct ksmemu_agent *agent, uint32_t id, uint32_t kind, uintptr_t start,
		      uintptr_t end, uint32_t value);

/** ksmemu_agent_remember() - what the next ksmd is to be told of a space besides what is mergeable */
int ksmemu_agent_remember(struct ksmemu_agent *agent, uint32_t id, const struct ksmemu_note *notes,
			  size_t nr);

/** ksmemu_agent_unmap() - take [start, end) out of the space: its bytes are gone. -ENOMEM: nothing changed */
int ksmemu_agent_unmap(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end,
		       const struct ksmemu_range *advised, size_t nr);

#endif
