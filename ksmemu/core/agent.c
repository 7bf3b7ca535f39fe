/*
 * The agent: one thread of the worker that takes ksmd's orders, because only code inside a process can
 * change that process's mappings.
 *
 * It takes no GIL, allocates nothing and takes no lock that a frozen writer could hold: a Python thread
 * that faults on a frozen page keeps the GIL, and only this thread can wake it. There is no fault loop:
 * writers sleep in the kernel until UFFDIO_WAKE, and every freeze ends in one.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"
#include "transaction.h"
#include "uapi.h"

static pthread_mutex_t agents_lock = PTHREAD_MUTEX_INITIALIZER;
static struct ksmemu_agent *agents;

/* ---- reports ------------------------------------------------------------------------------- */

/* A ksmd that is gone is no error of the worker: the thread will see it and end. */
static void send_report(struct ksmemu_agent *agent)
{
	size_t size = sizeof(agent->outbox.head) +
		      agent->outbox.head.nr_spans * sizeof(struct ksmemu_span);

	(void)send(agent->order, &agent->outbox, size, MSG_NOSIGNAL);
}

static void report_change(struct ksmemu_agent *agent, const struct ksmemu_space *space,
			  uint32_t kind, uintptr_t start, uintptr_t end)
{
	agent->outbox.head = (struct ksmemu_report){
		.kind = kind, .space = space->id, .epoch = space->epoch, .nr_spans = 1
	};
	agent->outbox.spans[0] = (struct ksmemu_span){
		.page = (start - space->start) >> KSMEMU_PAGE_SHIFT,
		.nr_pages = (end - start) >> KSMEMU_PAGE_SHIFT,
	};
	send_report(agent);
}

/* Note the errors of nr pages from page on, joined with the span before where they continue it. */
static void note(struct ksmemu_agent *agent, uint64_t page, uint64_t nr, const int32_t *error,
		 int32_t all)
{
	for (uint64_t i = 0; i < nr; i++) {
		uint32_t n = agent->outbox.head.nr_spans;
		struct ksmemu_span *last = n ? &agent->outbox.spans[n - 1] : NULL;
		int32_t this = error ? error[i] : all;

		if (last && last->error == this && last->page + last->nr_pages == page + i) {
			last->nr_pages++;
			continue;
		}
		agent->outbox.spans[n] = (struct ksmemu_span){ page + i, 1, this, 0 };
		agent->outbox.head.nr_spans++;
	}
}

/* ---- orders ---------------------------------------------------------------------------------- */

/* Whether the message is an order at all: sizes agree, runs ascend, the report will fit. */
static bool is_well_formed(const struct ksmemu_agent *agent, size_t size)
{
	const struct ksmemu_order *order = &agent->inbox.head;
	uint64_t pages = 0;

	if (size < sizeof(*order) || order->nr_runs == 0 ||
	    order->nr_runs > KSMEMU_ORDER_MAX_PAGES ||
	    size != sizeof(*order) + order->nr_runs * sizeof(struct ksmemu_run) ||
	    (order->kind != KSMEMU_ORDER_MERGE && order->kind != KSMEMU_ORDER_REHOME))
		return false;
	for (uint32_t i = 0; i < order->nr_runs; i++) {
		const struct ksmemu_run *run = &agent->inbox.runs[i];

		pages += run->nr_pages;
		if (run->nr_pages == 0 || pages > KSMEMU_ORDER_MAX_PAGES ||
		    run->page > UINT64_MAX >> (KSMEMU_PAGE_SHIFT + 1) ||
		    (i > 0 && run->page < run[-1].page + run[-1].nr_pages))
			return false;
	}
	return true;
}

/* Why [first, first + nr) of the space may not be touched, or 0. */
static int32_t refusal(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
		       uint64_t first, uint64_t nr)
{
	uint64_t start, end;

	if (!space)
		return ENOENT;
	if (space->epoch != agent->inbox.head.epoch)
		return ESTALE;
	start = space->start + (first << KSMEMU_PAGE_SHIFT);
	end = start + (nr << KSMEMU_PAGE_SHIFT);
	if (first + nr > space->size >> KSMEMU_PAGE_SHIFT ||
	    !ksmemu_space_is_advised(space, start, end))
		return EINVAL;
	return 0;
}

static bool is_in_pool(const struct ksmemu_agent *agent, const struct ksmemu_run *run)
{
	uint64_t frames = agent->pool_bytes >> KSMEMU_PAGE_SHIFT;

	return run->frame == KSMEMU_FRAME_ZERO ||
	       (run->frame < frames && run->nr_pages <= frames - run->frame);
}

/* Merge runs[0..nr), which fit into one window, and note each page of them. */
static void merge_runs(struct ksmemu_agent *agent, struct ksmemu_space *space,
		       const struct ksmemu_run *runs, size_t nr)
{
	const struct ksmemu_run *last = &runs[nr - 1];
	uint64_t first = runs[0].page;
	int32_t error = refusal(agent, space, first, last->page + last->nr_pages - first);
	struct ksmemu_verdict verdict;

	for (size_t i = 0; i < nr && !error; i++)
		error = is_in_pool(agent, &runs[i]) ? 0 : EINVAL;
	if (!error)
		ksmemu_merge_window(agent, space, runs, nr, &verdict,
				    &agent->outbox.head.frozen_ns);
	for (size_t i = 0; i < nr; i++)
		note(agent, runs[i].page, runs[i].nr_pages,
		     error ? NULL : verdict.error + (runs[i].page - first), error);
}

static void rehome_run(struct ksmemu_agent *agent, struct ksmemu_space *space,
		       const struct ksmemu_run *run)
{
	int32_t error = refusal(agent, space, run->page, run->nr_pages);
	uintptr_t start;

	if (!error) {
		start = space->start + (run->page << KSMEMU_PAGE_SHIFT);
		error = -ksmemu_rehome(agent, space, start,
				       start + ((uintptr_t)run->nr_pages << KSMEMU_PAGE_SHIFT),
				       &agent->outbox.head.frozen_ns);
	}
	note(agent, run->page, run->nr_pages, NULL, error);
}

/* Cut what is longer than one freeze may be: the piece that fits. */
static struct ksmemu_run piece(const struct ksmemu_run *run, uint32_t from, uint32_t max)
{
	uint32_t left = run->nr_pages - from;

	return (struct ksmemu_run){
		.page = run->page + from,
		.frame = run->frame == KSMEMU_FRAME_ZERO ? run->frame : run->frame + from,
		.nr_pages = left < max ? left : max,
	};
}

static void obey_long(struct ksmemu_agent *agent, struct ksmemu_space *space,
		      const struct ksmemu_run *run)
{
	bool is_rehome = agent->inbox.head.kind == KSMEMU_ORDER_REHOME;
	uint32_t max = is_rehome ? KSMEMU_REHOME_PAGES : KSMEMU_WINDOW_PAGES;

	for (uint32_t from = 0; from < run->nr_pages; from += max) {
		struct ksmemu_run part = piece(run, from, max);

		if (is_rehome)
			rehome_run(agent, space, &part);
		else
			merge_runs(agent, space, &part, 1);
	}
}

/* How many of the runs from i on share one freeze. */
static uint32_t window(const struct ksmemu_agent *agent, uint32_t i)
{
	const struct ksmemu_run *runs = agent->inbox.runs;
	uint32_t to = i + 1;

	while (to < agent->inbox.head.nr_runs && runs[to].join &&
	       runs[to].page + runs[to].nr_pages - runs[i].page <= KSMEMU_WINDOW_PAGES)
		to++;
	return to - i;
}

static void obey(struct ksmemu_agent *agent)
{
	const struct ksmemu_order *order = &agent->inbox.head;
	struct ksmemu_space *space;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, order->space);
	agent->outbox.head = (struct ksmemu_report){
		.kind = KSMEMU_OUTCOME,
		.space = order->space,
		.id = order->id,
		.epoch = space ? space->epoch : 0,
	};
	for (uint32_t i = 0; i < order->nr_runs;) {
		uint32_t nr = order->kind == KSMEMU_ORDER_MERGE ? window(agent, i) : 1;

		if (nr > 1)
			merge_runs(agent, space, &agent->inbox.runs[i], nr);
		else
			obey_long(agent, space, &agent->inbox.runs[i]);
		i += nr;
	}
	send_report(agent);
}

static void *serve(void *arg)
{
	struct ksmemu_agent *agent = arg;

	for (;;) {
		ssize_t got = recv(agent->order, &agent->inbox, sizeof(agent->inbox), 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0 || !is_well_formed(agent, (size_t)got))
			break;
		obey(agent);
	}
	/* ksmd is gone, or talks garbage: nothing more is taken from it, and it can tell. */
	atomic_store(&agent->is_alive, false);
	shutdown(agent->order, SHUT_RDWR);
	return NULL;
}

/* ---- fork -------------------------------------------------------------------------------------- */

static void advise_spaces(int advice)
{
	for (struct ksmemu_agent *agent = agents; agent; agent = agent->next)
		for (struct ksmemu_space *space = agent->spaces; space; space = space->next)
			(void)madvise((void *)space->start, space->size, advice);
}

/*
 * SAFE: with every agent.lock held no mapping changes until the parent or child handler, so no child
 * can be born with a frame mapped that ksmd does not know it holds.
 */
static void before_fork(void)
{
	pthread_mutex_lock(&agents_lock);
	for (struct ksmemu_agent *agent = agents; agent; agent = agent->next)
		pthread_mutex_lock(&agent->lock);
	advise_spaces(MADV_DONTFORK);
}

static void after_fork_in_parent(void)
{
	advise_spaces(MADV_DOFORK);
	for (struct ksmemu_agent *agent = agents; agent; agent = agent->next)
		pthread_mutex_unlock(&agent->lock);
	pthread_mutex_unlock(&agents_lock);
}

static void close_all(struct ksmemu_agent *agent)
{
	int *fds[] = { &agent->order, &agent->pool, &agent->pagemap, &agent->track, &agent->freeze };

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
}

static void drop_space(struct ksmemu_space *space)
{
	close(space->own);
	free(space->advised);
	free(space);
}

static void drop_spaces(struct ksmemu_agent *agent)
{
	while (agent->spaces) {
		struct ksmemu_space *space = agent->spaces;

		agent->spaces = space->next;
		drop_space(space);
	}
}

/* The child has neither the thread nor the memory: close what it inherited, refuse the rest. */
static void after_fork_in_child(void)
{
	for (struct ksmemu_agent *agent = agents; agent; agent = agent->next) {
		atomic_store(&agent->is_alive, false);
		agent->is_forked = true;
		close_all(agent);
		drop_spaces(agent);
		pthread_mutex_init(&agent->lock, NULL);
	}
	agents = NULL;
	pthread_mutex_init(&agents_lock, NULL);
}

static void watch_forks(void)
{
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* ---- lifecycle --------------------------------------------------------------------------------- */

static int start_thread(struct ksmemu_agent *agent)
{
	sigset_t all, old;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* the application's signals are not ours */
	error = pthread_create(&agent->thread, NULL, serve, agent);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -error;
}

static int set_up(struct ksmemu_agent *agent, bool tracks)
{
	const uint64_t wp = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED;
	void *frames;

	agent->freeze = ksmemu_uffd_open(wp, NULL, NULL);
	if (agent->freeze < 0)
		return agent->freeze;
	if (tracks) {
		agent->track = ksmemu_uffd_open(wp | UFFD_FEATURE_WP_ASYNC, NULL, NULL);
		if (agent->track < 0)
			return agent->track;
	}
	frames = mmap(NULL, agent->pool_bytes, PROT_READ, MAP_SHARED, agent->pool, 0);
	if (frames == MAP_FAILED)
		return -errno;
	madvise(frames, agent->pool_bytes, MADV_DONTFORK);
	agent->frames = frames;
	return start_thread(agent);
}

static void tear_down(struct ksmemu_agent *agent)
{
	if (agent->frames && !agent->is_forked)
		munmap((void *)(uintptr_t)agent->frames, agent->pool_bytes);
	close_all(agent);
	drop_spaces(agent);
	pthread_mutex_destroy(&agent->lock);
	free(agent);
}

int ksmemu_agent_create(int order, int pool, size_t pool_bytes, int pagemap, bool tracks,
			struct ksmemu_agent **ret)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct ksmemu_agent *agent = calloc(1, sizeof(*agent));
	int error;

	if (!agent) {
		close(order);
		close(pool);
		close(pagemap);
		return -ENOMEM;
	}
	pthread_mutex_init(&agent->lock, NULL);
	agent->order = order;
	agent->pool = pool;
	agent->pool_bytes = pool_bytes;
	agent->pagemap = pagemap;
	agent->track = agent->freeze = -1;
	atomic_store(&agent->is_alive, true);
	error = set_up(agent, tracks);
	if (error) {
		tear_down(agent);
		return error;
	}
	pthread_once(&once, watch_forks);
	{
		GUARD(&agents_lock);
		agent->next = agents;
		agents = agent;
	}
	*ret = agent;
	return 0;
}

void ksmemu_agent_destroy(struct ksmemu_agent *agent)
{
	if (!agent)
		return;
	if (!agent->is_forked) {
		shutdown(agent->order, SHUT_RDWR);
		pthread_join(agent->thread, NULL);
		GUARD(&agents_lock);
		for (struct ksmemu_agent **at = &agents; *at; at = &(*at)->next)
			if (*at == agent) {
				*at = agent->next;
				break;
			}
	}
	tear_down(agent);
}

bool ksmemu_agent_is_alive(struct ksmemu_agent *agent)
{
	return atomic_load(&agent->is_alive);
}

/* ---- what the application's threads ask -------------------------------------------------------- */

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
		error = ksmemu_map_nothing(space->start, space->size);
		if (error)
			return error;
		report_change(agent, space, KSMEMU_CLOSED, space->start, space->start + space->size);
		*at = space->next;
		drop_space(space);
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
		report_change(agent, space, KSMEMU_ADVISED, start, end);
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

int ksmemu_agent_rehome(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end)
{
	const size_t window_bytes = KSMEMU_REHOME_PAGES << KSMEMU_PAGE_SHIFT;
	uint64_t frozen_ns = 0;
	int error = 0;

	for (uintptr_t stop; start < end && !error; start = stop) {
		struct ksmemu_space *space;
		GUARD(&agent->lock);

		stop = end - start < window_bytes ? end : start + window_bytes;
		space = ksmemu_space_find(agent, id);
		error = space ? ksmemu_rehome(agent, space, start, stop, &frozen_ns) : -ENOENT;
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
	if (!error)
		report_change(agent, space, KSMEMU_UNADVISED, start, end);
	return error;
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
	report_change(agent, space, KSMEMU_UNMAPPED, start, end);
	return error;
}
