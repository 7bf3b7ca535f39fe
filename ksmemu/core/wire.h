/*
 * What ksmd and an agent say to each other over the order socket (SOCK_SEQPACKET, one message a
 * datagram, both ends on one machine: native byte order). ksmemu/wire.py is the same in Python; a
 * test compares the two.
 *
 * ksmd -> agent: an order, followed by nr_runs runs.
 * agent -> ksmd: a report, followed by nr_spans spans. Reports leave in the order in which the
 * mappings changed: a report is sent under the same lock under which the change was made.
 *
 * A space has the number that its agent gave it. Pages are counted from the start of the space, never given as
 * addresses.
 */
#ifndef KSMEMU_WIRE_H
#define KSMEMU_WIRE_H

#include <assert.h>
#include <stdint.h>

#define KSMEMU_WIRE_VERSION 4u

/* Most pages in one order: bounds a report (one span a page at worst) below a socket buffer. */
#define KSMEMU_ORDER_MAX_PAGES 4096u

/* The frame of a run of zeros: mapped to the kernel's zero page, not to the pool. */
#define KSMEMU_FRAME_ZERO UINT64_MAX

/* The same as the value of a span. */
#define KSMEMU_NO_FRAME UINT32_MAX

enum ksmemu_order_kind {
	KSMEMU_ORDER_MERGE = 1,	 /* map each run to its frames, if the bytes are equal */
	KSMEMU_ORDER_REHOME = 2, /* bring each run back to the own object */
	KSMEMU_ORDER_RENEW = 3,	 /* the same of BROKEN pages; what differs stays as it is */
};

enum ksmemu_report_kind {
	KSMEMU_OUTCOME = 1,	/* of order `id`: an error (0: done) for every page of the order */
	KSMEMU_ADVISED = 2,	/* mergeable from now on; the pages are in the own object */
	KSMEMU_UNADVISED = 3,	/* no longer mergeable; every page is in the own object again */
	KSMEMU_UNMAPPED = 4,	/* gone from the space */
	KSMEMU_CLOSED = 5,	/* the space is gone */
	KSMEMU_UNSHAREABLE = 6, /* no longer mergeable, as in 2009: what is merged stays merged */
	KSMEMU_REFUSED = 7,	/* not mergeable: the process itself has said so */
	KSMEMU_BOUND = 8,	/* on the NUMA node `value` from now on */
	KSMEMU_MAPPED =
		9, /* to a new ksmd: merged already, with the frame `value` and those after it */
	KSMEMU_RESUMED =
		10, /* to a new ksmd, and after FORKED: that is all that this space shows */
	KSMEMU_FORKED =
		11, /* the own object is the ancestor `value` now, whose holder `id` names; beside
				   it, two descriptors: the new own object, read-only, and the holder's */
	KSMEMU_INHERITED =
		12, /* shows the ancestor `value`, and has not been written since; 0: the own object */
};

struct ksmemu_order {
	uint32_t kind;
	uint32_t space;
	uint64_t id;
	uint32_t epoch; /* the space's, as ksmd last heard it; another one: every page ESTALE */
	uint32_t nr_runs;
};

struct ksmemu_run {
	uint64_t page;
	uint64_t frame; /* of the first page; the others follow it. KSMEMU_FRAME_ZERO: zeros */
	uint32_t nr_pages;
	uint32_t join; /* 1: in one freeze with the run before it; the pages between are OWN */
};

struct ksmemu_report {
	uint32_t kind;
	uint32_t space;
	uint64_t id;
	uint32_t epoch; /* raised by each withdrawal, UNADVISED and UNMAPPED */
	uint32_t nr_spans;
	uint64_t frozen_ns; /* longest freeze of this order */
};

struct ksmemu_span {
	uint64_t page;
	uint64_t nr_pages;
	int32_t error;	/* 0, or an errno: EAGAIN the bytes differ */
	uint32_t value; /* by kind; else 0 */
};

static_assert(sizeof(struct ksmemu_order) == 24, "wire layout");
static_assert(sizeof(struct ksmemu_run) == 24, "wire layout");
static_assert(sizeof(struct ksmemu_report) == 32, "wire layout");
static_assert(sizeof(struct ksmemu_span) == 24, "wire layout");

#endif
