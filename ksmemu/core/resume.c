/*
 * Join the next ksmd when ours is gone. What is merged stays merged meanwhile, and after it: the new ksmd
 * rebuilds its books from what is mapped here, and goes on with the pool that it is shown.
 *
 *   gone ─▶ wait for a socket ─▶ hello ─▶ spaces ─▶ what is mergeable, what is merged ─▶ orders again
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"

#define MESSAGE_BYTES 512u

/* While there is no directory that could be watched, and after a join that failed: then each time twice as long. */
#define RETRY_MILLISECS 1000
#define MAX_RETRY_MILLISECS 64000

/* What ksmd answers; descriptors may come with it. */
struct answer {
	char text[MESSAGE_BYTES];
	size_t nr_fds;
	int fds[2];
};

/* ---- talking to a ksmd --------------------------------------------------------------------- */

static int receive(int control, struct answer *ret)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} ancillary;
	struct iovec body = { ret->text, sizeof(ret->text) - 1 };
	struct msghdr message = {
		.msg_iov = &body,
		.msg_iovlen = 1,
		.msg_control = &ancillary,
		.msg_controllen = sizeof(ancillary),
	};
	ssize_t got = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *head;

	if (got <= 0)
		return got < 0 ? -errno : -ECONNRESET;
	ret->text[got] = '\0';
	ret->nr_fds = 0;
	head = CMSG_FIRSTHDR(&message);
	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
		ret->nr_fds = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(ret->fds, CMSG_DATA(head), ret->nr_fds * sizeof(int));
	}
	return 0;
}

static void close_fds(struct answer *answer)
{
	while (answer->nr_fds)
		close(answer->fds[--answer->nr_fds]);
}

/* Ask, and wait for the answer: 0, the errno that ksmd refuses with, or what failed. */
static int ask(struct ksmemu_agent *agent, int control, const char *text, const int *fds,
	       size_t nr_fds, struct answer *ret)
{
	struct pollfd wanted[] = { { control, POLLIN, 0 }, { agent->stop, POLLIN, 0 } };
	int refused, error = ksmemu_send(control, text, strlen(text), fds, nr_fds);

	if (error)
		return error;
	if (poll(wanted, 2, 1000 * KSMEMU_PATIENCE_SECONDS) <= 0 || wanted[1].revents)
		return -ETIMEDOUT;
	error = receive(control, ret);
	if (!error && sscanf(ret->text, "{\"errno\": %d", &refused) == 1)
		error = refused > 0 ? -refused : -EPROTO;
	return error;
}

/* Connect to whoever serves the directory, if that is the user who ran the ksmd we had. */
static int connect_to(const struct ksmemu_agent *agent)
{
	AUTO_CLOSE int directory = open(agent->terms.directory,
					O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	AUTO_CLOSE int control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	socklen_t size = sizeof(struct ucred);
	struct ucred peer;
	int done;

	if (directory < 0 || control < 0)
		return -errno;
	ksmemu_limit_patience(control);
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/ksmd.sock",
		       directory);
	if (connect(control, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    getsockopt(control, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	if (peer.uid != agent->ksmd)
		return -EPERM;
	done = control;
	control = -1;
	return done;
}

/* ---- telling it everything ----------------------------------------------------------------- */

static const char *word(bool value)
{
	return value ? "true" : "false";
}

static int say_hello(struct ksmemu_agent *agent, int control, int order, bool with_pool,
		     struct answer *ret)
{
	const struct ksmemu_terms *terms = &agent->terms;
	const int fds[] = { order, agent->pagemap, agent->holder.file };
	char text[MESSAGE_BYTES];
	size_t nr_spaces = 0;

	for (const struct ksmemu_space *space = agent->spaces; space; space = space->next)
		nr_spaces++;
	(void)snprintf(text, sizeof(text),
		       "{\"hello\": %u, \"resumes\": %zu, \"holder\": %" PRIu64
		       ", \"domain\": \"%s\", \"tracks\": %s, \"rfc2009\": %s, \"secure\": %s, "
		       "\"merge_any\": %s, \"refuses\": %s, \"forked\": %s}",
		       KSMEMU_WIRE_VERSION, nr_spaces, agent->holder.name, terms->label,
		       word(terms->tracks), word(terms->rfc2009), word(terms->secure),
		       word(terms->merge_any), word(terms->refuses), word(agent->is_unknown));
	return ask(agent, control, text, fds, with_pool ? 3 : 2, ret);
}

/* Ask for what is answered with no more than a yes. */
static int request(struct ksmemu_agent *agent, const char *text, int fd)
{
	struct answer answer = { .nr_fds = 0 };
	int error = ask(agent, agent->control, text, &fd, 1, &answer);

	close_fds(&answer);
	return error;
}

static int register_ancestors(struct ksmemu_agent *agent, const struct ksmemu_space *space)
{
	char text[MESSAGE_BYTES];
	int error = 0;

	for (uint32_t i = 0; i < KSMEMU_MAX_ANCESTORS && !error; i++) {
		const struct ksmemu_holder *holder = &space->ancestors[i].holder;

		if (holder->file < 0)
			continue;
		(void)snprintf(text, sizeof(text),
			       "{\"ancestor\": {\"space\": %u, \"number\": %u, \"holder\": %" PRIu64
			       "}}",
			       space->id, i + 1, holder->name);
		error = request(agent, text, holder->file);
	}
	return error;
}

static int register_space(struct ksmemu_agent *agent, const struct ksmemu_space *space)
{
	char path[64], text[MESSAGE_BYTES];
	int error;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", space->own.file);
	AUTO_CLOSE int own = open(path, O_RDONLY | O_CLOEXEC);
	if (own < 0)
		return -errno;
	(void)snprintf(text, sizeof(text),
		       "{\"space\": {\"id\": %u, \"start\": %" PRIuPTR
		       ", \"size\": %zu, \"node\": %u}}",
		       space->id, space->start, space->size, space->node);
	error = request(agent, text, own);
	return error ? error : register_ancestors(agent, space);
}

/* Under agent.lock, so that what is told holds until the last of it is told. */
static int tell_all(struct ksmemu_agent *agent)
{
	int error = 0;

	for (const struct ksmemu_space *space = agent->spaces; space && !error; space = space->next)
		error = register_space(agent, space);
	for (const struct ksmemu_space *space = agent->spaces; space && !error;
	     space = space->next) {
		ksmemu_tell_advised(agent, space);
		error = ksmemu_tell_mapped(agent, space, KSMEMU_INHERITED);
		if (!error)
			error = ksmemu_tell_mapped(agent, space, KSMEMU_MAPPED);
		if (!error)
			ksmemu_report(agent, space, KSMEMU_RESUMED, 0);
	}
	return error;
}

/* ---- the pool ------------------------------------------------------------------------------ */

static int come_home(struct ksmemu_agent *agent, struct ksmemu_space *space,
		     const struct ksmemu_mapping *mapping, int unused)
{
	(void)unused;
	return ksmemu_rehome_all(agent, space, mapping->start, mapping->end);
}

/* Bring everything home that shows a frame: the new ksmd has another pool. What fails stays as it is. */
static int leave_pool(struct ksmemu_agent *agent)
{
	int error = 0;
	GUARD(&agent->lock);

	for (struct ksmemu_space *space = agent->spaces; space && !error; space = space->next)
		error = ksmemu_each_mapping_of(agent, space, &agent->pool.inode, come_home, -1);
	return error;
}

/* Take what the new ksmd answered to the hello: nothing but a yes, or another pool and its holder. */
static int take_pool(struct ksmemu_agent *agent, struct answer *answer)
{
	uint64_t name;
	size_t bytes;
	void *frames;

	if (sscanf(answer->text, "{\"holder\": %" SCNu64 ", \"pool_bytes\": %zu", &name, &bytes) !=
	    2)
		return -EPROTO;
	if (!answer->nr_fds)
		return 0;
	if (answer->nr_fds != 2)
		return -EPROTO;
	frames = mmap(NULL, bytes, PROT_READ, MAP_SHARED, answer->fds[0], 0);
	if (frames == MAP_FAILED)
		return -errno;
	(void)madvise(frames, bytes, MADV_DONTFORK);
	munmap((void *)(uintptr_t)agent->frames, agent->pool_bytes);
	close(agent->pool.file);
	ksmemu_holder_close(&agent->holder);
	agent->frames = frames;
	agent->pool_bytes = bytes;
	agent->pool = ksmemu_object(answer->fds[0]);
	agent->holder = (struct ksmemu_holder){ answer->fds[1], name };
	answer->nr_fds = 0;
	return 0;
}

/* ---- resuming ------------------------------------------------------------------------------ */

/* A ksmd that still listens hears of it, and takes the next hello for one of a worker that it has lost. */
static void drop_sockets(struct ksmemu_agent *agent)
{
	if (agent->control >= 0) {
		close(agent->control);
		close(agent->order);
	}
	agent->control = agent->order = -1;
}

static int join(struct ksmemu_agent *agent, bool with_pool)
{
	struct answer answer = { .nr_fds = 0 };
	int error, pair[2];

	AUTO_CLOSE int control = connect_to(agent);
	if (control < 0)
		return control;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	AUTO_CLOSE int order = pair[0];
	AUTO_CLOSE int theirs = pair[1];
	ksmemu_limit_patience(order);
	GUARD(&agent->lock);

	error = say_hello(agent, control, theirs, with_pool, &answer);
	if (!error)
		error = take_pool(agent, &answer);
	close_fds(&answer);
	if (error)
		return error;
	drop_sockets(agent);
	agent->control = control;
	agent->order = order;
	control = order = -1;
	agent->is_cut_off = false;
	error = tell_all(agent);
	if (!error && agent->is_cut_off)
		error = -ECONNRESET;
	if (error) {
		drop_sockets(agent);
		return error;
	}
	agent->is_unknown = false;
	agent->is_unheard = true;
	atomic_store(&agent->is_alive, true);
	pthread_cond_broadcast(&agent->joined);
	return 0;
}

/* Sleep until something happens where the next ksmd would appear, but so long at most; < 0: for ever. */
static void await_change(const struct ksmemu_agent *agent, int watch, int millisecs)
{
	struct pollfd wanted[] = { { watch, POLLIN, 0 }, { agent->stop, POLLIN, 0 } };
	char events[sizeof(struct inotify_event) + NAME_MAX + 1];

	(void)poll(wanted, 2, millisecs);
	while (read(watch, events, sizeof(events)) > 0)
		continue;
}

static bool is_to_end(const struct ksmemu_agent *agent)
{
	struct pollfd wanted = { agent->stop, POLLIN, 0 };

	return poll(&wanted, 1, 0) > 0;
}

/* How long to wait for a sign before the next try, after one that failed. */
static int pause_after(int error, bool is_watched, int *retry)
{
	int now = *retry;

	if (!is_watched)
		return RETRY_MILLISECS;
	if (error == -ENOENT || error == -ECONNREFUSED) { /* there is no ksmd */
		*retry = RETRY_MILLISECS;
		return -1;
	}
	*retry = now < MAX_RETRY_MILLISECS ? 2 * now : now;
	return now;
}

bool ksmemu_resume(struct ksmemu_agent *agent)
{
	AUTO_CLOSE int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	int retry = RETRY_MILLISECS;

	while (!is_to_end(agent)) {
		/* First the watch, then the look: what comes in between is seen. A ksmd moves its socket here. */
		bool is_watched = inotify_add_watch(watch, agent->terms.directory,
						    IN_MOVED_TO | IN_ONLYDIR) >= 0;
		int error;

		/* A ksmd that cuts us off as soon as we have joined does so again: once a second is enough. */
		if (agent->is_unheard) {
			agent->is_unheard = false;
			await_change(agent, watch, RETRY_MILLISECS);
			continue;
		}
		error = join(agent, true);
		if (error == -ESTALE && !leave_pool(agent))
			error = join(agent, false);
		if (!error)
			return true;
		await_change(agent, watch, pause_after(error, is_watched, &retry));
	}
	return false;
}
