/*
 * Tell ksmd: reports of what happened, and all that is mergeable and mapped, for who knows nothing yet.
 *
 * Under agent.lock, so that reports come in the order of what they tell.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "core.h"

/* Most descriptors beside one message. */
#define MAX_FDS 3u

/* ---- messages ------------------------------------------------------------------------------ */

void ksmemu_limit_patience(int sock)
{
	struct timeval limit = { .tv_sec = KSMEMU_PATIENCE_SECONDS };

	(void)setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

int ksmemu_send(int sock, const void *bytes, size_t size, const int *fds, size_t nr_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} ancillary = { 0 };
	struct iovec body = { (void *)(uintptr_t)bytes, size };
	struct msghdr message = {
		.msg_iov = &body,
		.msg_iovlen = 1,
		.msg_control = &ancillary,
		.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int)),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	*head = (struct cmsghdr){
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
		.cmsg_len = CMSG_LEN(nr_fds * sizeof(int)),
	};
	memcpy(CMSG_DATA(head), fds, nr_fds * sizeof(int));
	while (sendmsg(sock, &message, MSG_NOSIGNAL) < 0)
		if (errno != EINTR) /* an application's thread, before its fork */
			return -errno;
	return 0;
}

/* ---- reports ------------------------------------------------------------------------------- */

/*
 * Books that miss a report would be wrong for ever: whoever cannot send one parts with ksmd. A ksmd that is gone
 * is no error of the worker: the thread will see it and end.
 */
void ksmemu_send_report(struct ksmemu_agent *agent)
{
	size_t size = sizeof(agent->outbox.head) +
		      agent->outbox.head.nr_spans * sizeof(struct ksmemu_span);
	ssize_t sent;

	do { /* an application's thread may be interrupted while ksmd is slow */
		sent = send(agent->order, &agent->outbox, size, MSG_NOSIGNAL);
	} while (sent < 0 && errno == EINTR);
	if (sent < 0) {
		shutdown(agent->order, SHUT_RDWR);
		agent->is_cut_off = true;
	}
}

void ksmemu_report(struct ksmemu_agent *agent, const struct ksmemu_space *space, uint32_t kind,
		   uint32_t nr_spans)
{
	agent->outbox.head = (struct ksmemu_report){
		.kind = kind, .space = space->id, .epoch = space->epoch, .nr_spans = nr_spans
	};
	ksmemu_send_report(agent);
}

/* ---- all there is -------------------------------------------------------------------------- */

/* Add a span to the report that is being put together, and send that when it is full. */
static void tell(struct ksmemu_agent *agent, const struct ksmemu_space *space, uint32_t kind,
		 uint64_t start, uint64_t end, uint32_t value, uint32_t *nr)
{
	agent->outbox.spans[(*nr)++] = (struct ksmemu_span){
		.page = (start - space->start) >> KSMEMU_PAGE_SHIFT,
		.nr_pages = (end - start) >> KSMEMU_PAGE_SHIFT,
		.value = value,
	};
	if (*nr == KSMEMU_ORDER_MAX_PAGES) {
		ksmemu_report(agent, space, kind, *nr);
		*nr = 0;
	}
}

static void tell_rest(struct ksmemu_agent *agent, const struct ksmemu_space *space, uint32_t kind,
		      uint32_t nr)
{
	if (nr)
		ksmemu_report(agent, space, kind, nr);
}

void ksmemu_tell_advised(struct ksmemu_agent *agent, const struct ksmemu_space *space)
{
	uint32_t nr = 0;

	for (size_t i = 0; i < space->nr_advised; i++)
		tell(agent, space, KSMEMU_ADVISED, space->advised[i].start, space->advised[i].end,
		     0, &nr);
	tell_rest(agent, space, KSMEMU_ADVISED, nr);
	for (size_t i = 0; i < space->nr_notes; i++) {
		const struct ksmemu_note *note = &space->notes[i];

		nr = 0;
		tell(agent, space, note->kind, note->start, note->end, note->value, &nr);
		ksmemu_report(agent, space, note->kind, nr);
	}
}

/* Advised memory is mapped from the own object or merged, so what is anonymous in it are zeros. */
static void tell_zeros(struct ksmemu_agent *agent, const struct ksmemu_space *space,
		       const struct ksmemu_mapping *found, uint32_t *nr)
{
	for (size_t i = 0; i < space->nr_advised; i++) {
		const struct ksmemu_range *advised = &space->advised[i];
		uint64_t start = advised->start > found->start ? advised->start : found->start;
		uint64_t end = advised->end < found->end ? advised->end : found->end;

		if (start < end)
			tell(agent, space, KSMEMU_MAPPED, start, end, KSMEMU_NO_FRAME, nr);
	}
}

/* Wherever it lies: what is being unmerged is not advised any more, and shows frames still. */
int ksmemu_tell_mapped(struct ksmemu_agent *agent, const struct ksmemu_space *space, uint32_t kind)
{
	struct ksmemu_mapping found;
	struct ksmemu_walk walk;
	uint32_t nr = 0;
	int error = ksmemu_walk_begin(&walk);

	if (error)
		return error;
	while ((error = ksmemu_walk_next(&walk, space->start, space->start + space->size, &found)) >
	       0) {
		uint32_t ancestor = ksmemu_ancestor_of(space, &found);

		if (kind == KSMEMU_INHERITED && ancestor)
			tell(agent, space, kind, found.start, found.end, ancestor, &nr);
		else if (kind == KSMEMU_MAPPED && !found.inode.number)
			tell_zeros(agent, space, &found, &nr);
		else if (kind == KSMEMU_MAPPED && ksmemu_is_of(&found, &agent->pool.inode))
			tell(agent, space, kind, found.start, found.end,
			     (uint32_t)(found.offset >> KSMEMU_PAGE_SHIFT), &nr);
	}
	ksmemu_walk_end(&walk);
	tell_rest(agent, space, kind, nr);
	return error;
}
