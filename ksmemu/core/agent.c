/*
 * The agent: one thread of the worker that takes ksmd's orders, because only code inside a process can
 * change that process's mappings.
 *
 * It takes no GIL, allocates nothing and takes no lock that a frozen writer could hold: a Python thread
 * that faults on a frozen page keeps the GIL, and only this thread can wake it. There is no fault loop:
 * writers sleep in the kernel until UFFDIO_WAKE, and every freeze ends in one.
 */
#include <errno.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"
#include "freeze.h"
#include "uapi.h"

/* A window of KSMEMU_WINDOW_PAGES is merged in about so long. */
#define SLICE_NS 250000u

/* ---- outcomes ------------------------------------------------------------------------------ */

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
	    (order->kind != KSMEMU_ORDER_MERGE && order->kind != KSMEMU_ORDER_REHOME &&
	     order->kind != KSMEMU_ORDER_RENEW))
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

/* Why runs[0..nr), and what lies between them, may not be touched, or 0. */
static int32_t refusal_of_runs(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
			       const struct ksmemu_run *runs, size_t nr)
{
	const struct ksmemu_run *last = &runs[nr - 1];
	int32_t error = refusal(agent, space, runs[0].page,
				last->page + last->nr_pages - runs[0].page);

	for (size_t i = 0; i < nr && !error; i++)
		error = is_in_pool(agent, &runs[i]) ? 0 : EINVAL;
	return error;
}

/* Note each page of runs[0..nr): error[i] tells of page i from the first on, unless all have the same. */
static void note_runs(struct ksmemu_agent *agent, const struct ksmemu_run *runs, size_t nr,
		      const int32_t *error, int32_t all)
{
	for (size_t i = 0; i < nr; i++)
		note(agent, runs[i].page, runs[i].nr_pages,
		     all ? NULL : error + (runs[i].page - runs[0].page), all);
}

/* Merge runs[0..nr), which fit into one window, and note each page of them. */
static void merge_runs(struct ksmemu_agent *agent, struct ksmemu_space *space,
		       const struct ksmemu_run *runs, size_t nr)
{
	int32_t error = refusal_of_runs(agent, space, runs, nr);
	struct ksmemu_verdict verdict;

	if (!error)
		ksmemu_merge_window(agent, space, runs, nr, &verdict,
				    &agent->outbox.head.frozen_ns);
	note_runs(agent, runs, nr, verdict.error, error);
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

/* Renew runs[0..nr), which fit into one freeze, and note each page of them. */
static void renew_runs(struct ksmemu_agent *agent, struct ksmemu_space *space,
		       const struct ksmemu_run *runs, size_t nr)
{
	int32_t error = refusal_of_runs(agent, space, runs, nr);
	int32_t found[KSMEMU_RENEW_PAGES];

	if (!error)
		ksmemu_renew(agent, space, runs, nr, found, &agent->outbox.head.frozen_ns);
	note_runs(agent, runs, nr, found, error);
}

/* How many of the pages at `first` are under one protection: at most max. */
static uint32_t alike(const struct ksmemu_space *space, uint64_t first, uint32_t max)
{
	uintptr_t start = space->start + (first << KSMEMU_PAGE_SHIFT);
	uintptr_t end = start + ((uintptr_t)max << KSMEMU_PAGE_SHIFT);
	int prot;

	end = ksmemu_space_protection(space, start, end, &prot);
	return (uint32_t)((end - start) >> KSMEMU_PAGE_SHIFT);
}

/* Cut what is longer than one freeze may be: the piece that fits. */
static struct ksmemu_run piece(const struct ksmemu_run *run, uint32_t from, uint32_t max)
{
	uint32_t left = run->nr_pages - from;

	return (struct ksmemu_run){
		.page = run->page + from,
		.frame = ksmemu_frame_of(run, from),
		.nr_pages = left < max ? left : max,
	};
}

static void obey_long(struct ksmemu_agent *agent, struct ksmemu_space *space,
		      const struct ksmemu_run *run)
{
	uint32_t kind = agent->inbox.head.kind;
	uint32_t max = kind == KSMEMU_ORDER_REHOME ? KSMEMU_REHOME_PAGES : KSMEMU_WINDOW_PAGES;

	for (uint32_t from = 0; from < run->nr_pages;) {
		struct ksmemu_run part = piece(run, from, max);

		if (kind != KSMEMU_ORDER_MERGE && space)
			part.nr_pages = alike(space, part.page, part.nr_pages);
		if (kind == KSMEMU_ORDER_REHOME)
			rehome_run(agent, space, &part);
		else if (kind == KSMEMU_ORDER_RENEW)
			renew_runs(agent, space, &part, 1);
		else
			merge_runs(agent, space, &part, 1);
		from += part.nr_pages;
	}
}

/* How many of the runs from i on are merged under one freeze. */
static uint32_t window(const struct ksmemu_agent *agent, uint32_t i)
{
	const struct ksmemu_run *runs = agent->inbox.runs;
	uint32_t to = i + 1;

	while (to < agent->inbox.head.nr_runs && runs[to].join &&
	       runs[to].page + runs[to].nr_pages - runs[i].page <= KSMEMU_WINDOW_PAGES)
		to++;
	return to - i;
}

/* How many of the runs from i on are renewed under one freeze: where all between them is alike. */
static uint32_t renewals(const struct ksmemu_agent *agent, const struct ksmemu_space *space,
			 uint32_t i)
{
	const struct ksmemu_run *runs = agent->inbox.runs;
	uint64_t nr_pages = runs[i].nr_pages, span = nr_pages;
	uint32_t to = i + 1;

	for (; to < agent->inbox.head.nr_runs; to++) {
		uint64_t wider = runs[to].page + runs[to].nr_pages - runs[i].page;

		nr_pages += runs[to].nr_pages;
		if (wider > KSMEMU_RENEW_PAGES || nr_pages > KSMEMU_WINDOW_PAGES)
			break;
		span = wider;
	}
	if (to == i + 1 || refusal(agent, space, runs[i].page, span) ||
	    alike(space, runs[i].page, (uint32_t)span) < span)
		return 1;
	return to - i;
}

/* Merge or renew as many of the runs from i on as share a freeze; return how many, 1: they share none. */
static uint32_t obey_together(struct ksmemu_agent *agent, struct ksmemu_space *space, uint32_t i)
{
	const struct ksmemu_run *runs = &agent->inbox.runs[i];
	uint32_t kind = agent->inbox.head.kind, nr = 1;

	if (kind == KSMEMU_ORDER_MERGE)
		nr = window(agent, i);
	if (kind == KSMEMU_ORDER_RENEW)
		nr = renewals(agent, space, i);
	if (nr > 1)
		(kind == KSMEMU_ORDER_MERGE ? merge_runs : renew_runs)(agent, space, runs, nr);
	return nr;
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
		uint32_t nr = obey_together(agent, space, i);

		if (nr == 1)
			obey_long(agent, space, &agent->inbox.runs[i]);
		i += nr;
	}
	ksmemu_send_report(agent);
}

/*
 * Ask the scheduler for slices about as long as a freeze: it gives them sooner, and takes the processor away
 * between two rather than in one (see ksmemu_fresh_slice()). Before Linux 6.12 it does not listen.
 */
static void ask_for_short_slices(void)
{
	struct ksmemu_sched_attr attr;

	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) < 0 ||
	    (attr.sched_policy != SCHED_OTHER && attr.sched_policy != SCHED_BATCH))
		return;
	attr.sched_runtime = SLICE_NS;
	(void)syscall(SYS_sched_setattr, 0, &attr, 0);
}

/* Take orders until ksmd is gone: true; or talks garbage: nothing more is taken from it, and it can tell. */
static bool take_orders(struct ksmemu_agent *agent)
{
	for (;;) {
		ssize_t got = recv(agent->order, &agent->inbox, sizeof(agent->inbox), 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			atomic_store(&agent->is_alive, false);
			shutdown(agent->order,
				 SHUT_RDWR); /* if it is there after all, it is to know */
			return true;
		}
		if (!is_well_formed(agent, (size_t)got))
			return false;
		agent->is_unheard = false;
		obey(agent);
	}
}

void *ksmemu_serve(void *arg)
{
	struct ksmemu_agent *agent = arg;

	ask_for_short_slices();
	do {
		if (!atomic_load(&agent->is_alive) && !ksmemu_resume(agent))
			return NULL;
	} while (take_orders(agent));
	atomic_store(&agent->is_alive, false);
	shutdown(agent->order, SHUT_RDWR);
	return NULL;
}
