/*
 * Join a ksmd and leave it: the agent's descriptors and its thread.
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
#include "uapi.h"

pthread_mutex_t ksmemu_agents_lock = PTHREAD_MUTEX_INITIALIZER;
struct ksmemu_agent *ksmemu_agents;

void ksmemu_agent_init_lock(struct ksmemu_agent *agent)
{
	pthread_condattr_t monotonic;

	pthread_mutex_init(&agent->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&agent->joined, &monotonic);
	pthread_condattr_destroy(&monotonic);
}

void ksmemu_agent_close(struct ksmemu_agent *agent)
{
	int *fds[] = { &agent->control, &agent->order,	&agent->pool.file, &agent->pagemap,
		       &agent->track,	&agent->freeze, &agent->stop,	   &agent->maps };

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
	ksmemu_holder_close(&agent->holder);
}

/* ---- lifecycle --------------------------------------------------------------------------------- */

int ksmemu_agent_start(struct ksmemu_agent *agent)
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

int ksmemu_agent_set_up(struct ksmemu_agent *agent)
{
	int error = open_userfaultfds(agent);
	void *frames;

	if (error)
		return error;
	agent->stop = eventfd(0, EFD_CLOEXEC);
	if (agent->stop < 0)
		return -errno;
	agent->maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	if (agent->maps < 0)
		return -errno;
	frames = mmap(NULL, agent->pool_bytes, PROT_READ, MAP_SHARED, agent->pool.file, 0);
	if (frames == MAP_FAILED)
		return -errno;
	madvise(frames, agent->pool_bytes, MADV_DONTFORK);
	agent->frames = frames;
	return 0;
}

static void tear_down(struct ksmemu_agent *agent)
{
	if (agent->frames)
		munmap((void *)(uintptr_t)agent->frames, agent->pool_bytes);
	ksmemu_agent_close(agent);
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
		close(fds->holder.file);
		close(fds->pagemap);
		free(directory);
		free(agent);
		return NULL;
	}
	ksmemu_agent_init_lock(agent);
	agent->terms = *terms;
	agent->terms.directory = directory;
	agent->control = fds->control;
	agent->order = fds->order;
	agent->pool = ksmemu_object(fds->pool);
	agent->holder = fds->holder;
	agent->child.file = -1;
	agent->pagemap = fds->pagemap;
	ksmemu_limit_patience(agent->order);
	agent->track = agent->freeze = agent->stop = agent->maps = -1;
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
	error = know_ksmd(agent);
	if (!error)
		error = ksmemu_agent_set_up(agent);
	if (!error)
		error = ksmemu_agent_start(agent);
	if (error) {
		tear_down(agent);
		return error;
	}
	agent->has_thread = true;
	pthread_once(&once, ksmemu_watch_forks);
	{
		GUARD(&ksmemu_agents_lock);
		agent->next = ksmemu_agents;
		ksmemu_agents = agent;
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
	if (agent->has_thread)
		stop_thread(agent);
	{
		struct ksmemu_agent **at = &ksmemu_agents;
		GUARD(&ksmemu_agents_lock);

		while (*at != agent)
			at = &(*at)->next;
		*at = agent->next;
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

int ksmemu_agent_own(struct ksmemu_agent *agent, uint32_t id)
{
	struct ksmemu_space *space;
	int fd;
	GUARD(&agent->lock);

	space = ksmemu_space_find(agent, id);
	if (!space)
		return -ENOENT;
	fd = fcntl(space->own.file, F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

void ksmemu_agent_set_flags(struct ksmemu_agent *agent, bool merge_any, bool refuses)
{
	GUARD(&agent->lock);

	agent->terms.merge_any = merge_any;
	agent->terms.refuses = refuses;
}
