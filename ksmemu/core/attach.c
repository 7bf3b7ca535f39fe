/*
 * Join a ksmd and leave it: the agent's descriptors, its thread, and what a fork does to both.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"
#include "transaction.h"
#include "uapi.h"

static pthread_mutex_t agents_lock = PTHREAD_MUTEX_INITIALIZER;
static struct ksmemu_agent *agents;

static void init_lock(struct ksmemu_agent *agent)
{
	pthread_condattr_t monotonic;

	pthread_mutex_init(&agent->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&agent->joined, &monotonic);
	pthread_condattr_destroy(&monotonic);
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
	int *fds[] = { &agent->control, &agent->order,	&agent->pool, &agent->pagemap,
		       &agent->track,	&agent->freeze, &agent->stop };

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
}

/* The child has neither the thread nor the memory: close what it inherited, refuse the rest. */
static void after_fork_in_child(void)
{
	for (struct ksmemu_agent *agent = agents; agent; agent = agent->next) {
		atomic_store(&agent->is_alive, false);
		agent->is_forked = true;
		close_all(agent);
		ksmemu_spaces_drop(agent);
		init_lock(agent);
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
	error = pthread_create(&agent->thread, NULL, ksmemu_serve, agent);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -error;
}

/* Remember who runs the ksmd at the other end. */
static int know_ksmd(struct ksmemu_agent *agent)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(agent->control, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	agent->ksmd = peer.uid;
	return 0;
}

static int open_userfaultfds(struct ksmemu_agent *agent)
{
	const uint64_t wp = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED;

	agent->freeze = ksmemu_uffd_open(wp, NULL, NULL);
	if (agent->freeze < 0)
		return agent->freeze;
	if (agent->terms.tracks)
		agent->track = ksmemu_uffd_open(wp | UFFD_FEATURE_WP_ASYNC, NULL, NULL);
	return agent->track < 0 && agent->terms.tracks ? agent->track : 0;
}

static int set_up(struct ksmemu_agent *agent)
{
	int error = know_ksmd(agent);
	void *frames;

	if (!error)
		error = open_userfaultfds(agent);
	if (error)
		return error;
	agent->stop = eventfd(0, EFD_CLOEXEC);
	if (agent->stop < 0)
		return -errno;
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
	ksmemu_spaces_drop(agent);
	pthread_cond_destroy(&agent->joined);
	pthread_mutex_destroy(&agent->lock);
	free(agent->terms.directory);
	free(agent);
}

/* NULL without memory; the descriptors belong to the agent, or are closed. */
static struct ksmemu_agent *new_agent(const struct ksmemu_descriptors *fds,
				      const struct ksmemu_terms *terms)
{
	struct ksmemu_agent *agent = calloc(1, sizeof(*agent));
	char *directory = strdup(terms->directory);

	if (!agent || !directory) {
		close(fds->control);
		close(fds->order);
		close(fds->pool);
		close(fds->pagemap);
		free(directory);
		free(agent);
		return NULL;
	}
	init_lock(agent);
	agent->terms = *terms;
	agent->terms.directory = directory;
	agent->control = fds->control;
	agent->order = fds->order;
	agent->pool = fds->pool;
	agent->pagemap = fds->pagemap;
	agent->track = agent->freeze = agent->stop = -1;
	atomic_store(&agent->is_alive, true);
	return agent;
}

int ksmemu_agent_create(const struct ksmemu_descriptors *fds, size_t pool_bytes,
			const struct ksmemu_terms *terms, struct ksmemu_agent **ret)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct ksmemu_agent *agent = new_agent(fds, terms);
	int error;

	if (!agent)
		return -ENOMEM;
	agent->pool_bytes = pool_bytes;
	error = set_up(agent);
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

/* The thread ends when it looks at either: it takes orders, or waits for the next ksmd. */
static void stop_thread(struct ksmemu_agent *agent)
{
	(void)eventfd_write(agent->stop, 1); /* fails only where it would count beyond 64 bits */
	{
		GUARD(&agent->lock);
		shutdown(agent->order, SHUT_RDWR);
	}
	pthread_join(agent->thread, NULL);
}

void ksmemu_agent_destroy(struct ksmemu_agent *agent)
{
	if (!agent)
		return;
	if (!agent->is_forked) {
		stop_thread(agent);
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

int ksmemu_agent_wait(struct ksmemu_agent *agent, unsigned int seconds)
{
	struct timespec until;
	int error = 0;
	GUARD(&agent->lock);

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)seconds;
	while (!ksmemu_agent_is_alive(agent) && !error)
		error = pthread_cond_timedwait(&agent->joined, &agent->lock, &until);
	return -error;
}

int ksmemu_agent_control(struct ksmemu_agent *agent)
{
	int fd;
	GUARD(&agent->lock);

	fd = fcntl(agent->control, F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

void ksmemu_agent_set_flags(struct ksmemu_agent *agent, bool merge_any, bool refuses)
{
	GUARD(&agent->lock);

	agent->terms.merge_any = merge_any;
	agent->terms.refuses = refuses;
}
