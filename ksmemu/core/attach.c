/*
 * Join a ksmd and leave it: the agent's descriptors, its thread, and what a fork does to both.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"
#include "transaction.h"
#include "uapi.h"

static pthread_mutex_t agents_lock = PTHREAD_MUTEX_INITIALIZER;
static struct ksmemu_agent *agents;

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
	int *fds[] = { &agent->order, &agent->pool, &agent->pagemap, &agent->track,
		       &agent->freeze };

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
	error = pthread_create(&agent->thread, NULL, ksmemu_serve, agent);
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
	ksmemu_spaces_drop(agent);
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
