/*
 * The faults of the test-only build: every call of the core that can fail passes here (ld --wrap), is noted, and
 * fails, is done by half, or is the last thing that the process does, if it is the chosen one.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core.h"
#include "uapi.h"

/* As in faults.py. */
enum how { NONE, FAIL, HALF, KILL_BEFORE, KILL_AFTER, STOP_BEFORE, STOP_AFTER };

struct fault {
	char name[32];
	unsigned int nth; /* of the calls of that name, from 1; 0: every one */
	enum how how;
	int error;
	unsigned int seen;
};

static const struct fault none = { .how = NONE };
static struct {
	pthread_mutex_t lock;
	bool is_on;
	size_t nr;
	struct fault chosen[4];
	size_t length;
	char trace[1 << 16]; /* names of all calls, a line each */
} faults = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* A forked child goes on with the faults of its parent, whatever the other threads were about. */
static void lock(void)
{
	pthread_mutex_lock(&faults.lock);
}

static void unlock(void)
{
	pthread_mutex_unlock(&faults.lock);
}

__attribute__((constructor)) static void keep_over_forks(void)
{
	pthread_atfork(lock, unlock, unlock);
}

void faults_choose(const char *name, unsigned int nth, int how, int error);
void faults_begin(void);
const char *faults_end(void);

void faults_choose(const char *name, unsigned int nth, int how, int error)
{
	struct fault *fault = &faults.chosen[faults.nr++ % 4];

	*fault = (struct fault){ .nth = nth, .how = (enum how)how, .error = error };
	strncpy(fault->name, name, sizeof(fault->name) - 1);
}

void faults_begin(void)
{
	pthread_mutex_lock(&faults.lock);
	faults.length = 0;
	faults.trace[0] = 0;
	faults.is_on = true;
	pthread_mutex_unlock(&faults.lock);
}

const char *faults_end(void)
{
	pthread_mutex_lock(&faults.lock);
	faults.is_on = false;
	faults.nr = 0;
	pthread_mutex_unlock(&faults.lock);
	return faults.trace;
}

#ifdef KSMEMU_COVERAGE
void __gcov_dump(void);
void faults_save_coverage(void);

/* For a process that ends in _exit(2), where nobody does it. */
void faults_save_coverage(void)
{
	__gcov_dump();
}
#endif

static void note(const char *name)
{
	size_t length = strlen(name);

	if (faults.length + length + 2 > sizeof(faults.trace))
		abort();
	memcpy(faults.trace + faults.length, name, length);
	memcpy(faults.trace + faults.length + length, "\n", 2);
	faults.length += length + 1;
}

static struct fault chosen(const char *name)
{
	struct fault found = none;

	pthread_mutex_lock(&faults.lock);
	if (faults.is_on)
		note(name);
	for (size_t i = 0; faults.is_on && i < faults.nr; i++) {
		struct fault *fault = &faults.chosen[i];

		if (strcmp(name, fault->name) == 0 && (++fault->seen == fault->nth || !fault->nth))
			found = *fault;
	}
	pthread_mutex_unlock(&faults.lock);
	return found;
}

/* A signal to this thread: it is dead, or stopped, before it goes on. */
static void die_or_stop(enum how how, enum how kill, enum how stop)
{
	if (how == kill)
		raise(SIGKILL);
	if (how == stop)
		raise(SIGSTOP);
}

static struct fault before(const char *name)
{
	struct fault fault = chosen(name);

	die_or_stop(fault.how, KILL_BEFORE, STOP_BEFORE);
	errno = fault.how == FAIL || fault.how == HALF ? fault.error : errno;
	return fault;
}

static void after(struct fault fault)
{
	int error = errno;

	die_or_stop(fault.how, KILL_AFTER, STOP_AFTER);
	errno = fault.how == HALF && fault.error ? fault.error : error;
}

/* A call that fails with `failed`, and cannot be done by half. */
#define WRAP(type, failed, name, parameters, arguments)                                            \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		struct fault fault = before(#name);                                                \
		type result = failed;                                                              \
                                                                                                   \
		if (fault.how != FAIL && fault.how != HALF)                                        \
			result = __real_##name arguments;                                          \
		after(fault);                                                                      \
		return result;                                                                     \
	}

/* A call that returns how much of `size` it did. */
#define WRAP_SIZED(type, name, parameters, arguments)                                              \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		struct fault fault = before(#name);                                                \
		type result = -1;                                                                  \
                                                                                                   \
		if (fault.how == HALF)                                                             \
			size /= 2;                                                                 \
		if (fault.how != FAIL)                                                             \
			result = __real_##name arguments;                                          \
		after(fault);                                                                      \
		return result;                                                                     \
	}

/* A call on pages that fails when half of them are done. */
static size_t half(size_t size)
{
	return size / KSMEMU_PAGE_SIZE / 2 * KSMEMU_PAGE_SIZE;
}

#define WRAP_PAGES(name, parameters, arguments)                                                    \
	int __real_##name parameters;                                                              \
	int __wrap_##name parameters;                                                              \
	int __wrap_##name parameters                                                               \
	{                                                                                          \
		struct fault fault = before(#name);                                                \
		int result = -1;                                                                   \
                                                                                                   \
		if (fault.how == HALF && (size = (__typeof__(size))half((size_t)size)) > 0)        \
			(void)__real_##name arguments;                                             \
		if (fault.how != FAIL && fault.how != HALF)                                        \
			result = __real_##name arguments;                                          \
		after(fault);                                                                      \
		return result;                                                                     \
	}

WRAP(void *, NULL, malloc, (size_t size), (size))
WRAP(void *, NULL, calloc, (size_t nr, size_t size), (nr, size))
WRAP(void *, MAP_FAILED, mmap, (void *at, size_t size, int prot, int flags, int fd, off_t offset),
     (at, size, prot, flags, fd, offset))
WRAP(int, -1, munmap, (void *at, size_t size), (at, size))
WRAP(off_t, -1, lseek, (int fd, off_t offset, int whence), (fd, offset, whence))
WRAP(ssize_t, -1, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags))
WRAP(ssize_t, -1, recv, (int fd, void *data, size_t size, int flags), (fd, data, size, flags))
WRAP(int, fault.error, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg),
     (thread, attributes, run, arg))
WRAP_SIZED(ssize_t, pread, (int fd, void *to, size_t size, off_t offset), (fd, to, size, offset))
WRAP_SIZED(ssize_t, pwrite, (int fd, const void *from, size_t size, off_t offset),
	   (fd, from, size, offset))
WRAP_PAGES(mprotect, (void *at, size_t size, int prot), (at, size, prot))
WRAP_PAGES(madvise, (void *at, size_t size, int advice), (at, size, advice))
WRAP_PAGES(fallocate, (int fd, int mode, off_t offset, off_t size), (fd, mode, offset, size))

WRAP(int, -1, fstatfs64, (int fd, struct statfs64 *status), (fd, status))
WRAP(int, -1, ftruncate, (int fd, off_t size), (fd, size))
WRAP(int, -1, memfd_create, (const char *name, unsigned int flags), (name, flags))
WRAP(int, -1, eventfd, (unsigned int count, int flags), (count, flags))
WRAP(int, -1, inotify_init1, (int flags), (flags))
WRAP(int, -1, inotify_add_watch, (int fd, const char *path, uint32_t mask), (fd, path, mask))
WRAP(int, -1, poll, (struct pollfd * fds, nfds_t nr, int timeout), (fds, nr, timeout))
WRAP(int, -1, socket, (int family, int type, int protocol), (family, type, protocol))
WRAP(int, -1, socketpair, (int family, int type, int protocol, int *pair),
     (family, type, protocol, pair))
WRAP(int, -1, connect, (int fd, const struct sockaddr *address, socklen_t size),
     (fd, address, size))
WRAP(int, -1, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
     (fd, level, name, value, size))
WRAP(ssize_t, -1, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
WRAP(ssize_t, -1, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
WRAP(char *, NULL, strdup, (const char *text), (text))
WRAP(int, -1, fcntl, (int fd, int command, void *arg), (fd, command, arg))
WRAP(void *, MAP_FAILED, mremap, (void *from, size_t size, size_t new_size, int flags, void *to),
     (from, size, new_size, flags, to))
WRAP_SIZED(ssize_t, read, (int fd, void *to, size_t size), (fd, to, size))
WRAP_SIZED(ssize_t, getrandom, (void *to, size_t size, unsigned int flags), (to, size, flags))

int __real_open(const char *path, int flags);
int __wrap_open(const char *path, int flags);
int __wrap_open(const char *path, int flags)
{
	struct fault fault = before("open");
	int result = fault.how == FAIL || fault.how == HALF ? -1 : __real_open(path, flags);

	after(fault);
	return result;
}

static const char *name_of_syscall(long number)
{
	switch (number) {
	case SYS_userfaultfd:
		return "userfaultfd";
	case SYS_process_madvise:
		return "process_madvise";
	case SYS_sched_getattr:
		return "sched_getattr";
	default:
		return "sched_setattr";
	}
}

/* Of process_madvise(2), c is how many ranges there are. */
long __real_syscall(long number, ...);
long __wrap_syscall(long number, long a, long b, long c, long d, long e);
long __wrap_syscall(long number, long a, long b, long c, long d, long e)
{
	struct fault fault = before(name_of_syscall(number));
	long result = -1;

	if (fault.how == HALF && number == SYS_process_madvise)
		result = __real_syscall(number, a, b, c / 2, d, e);
	else if (fault.how != FAIL && fault.how != HALF)
		result = __real_syscall(number, a, b, c, d, e);
	after(fault);
	return result;
}

static const char *name_of(unsigned long request, const void *arg)
{
	switch (request) {
	case UFFDIO_API:
		return "api";
	case UFFDIO_REGISTER:
		return "register";
	case UFFDIO_UNREGISTER:
		return "unregister";
	case UFFDIO_WRITEPROTECT:
		return ((const struct uffdio_writeprotect *)arg)->mode ? "protect" : "unprotect";
	case UFFDIO_WAKE:
		return "wake";
	case PAGEMAP_SCAN:
		return "scan";
	default:
		return "new";
	}
}

/* Each argument of a userfaultfd's ioctl on a range begins with that range. */
static bool has_range(unsigned long request)
{
	return request == UFFDIO_REGISTER || request == UFFDIO_UNREGISTER ||
	       request == UFFDIO_WRITEPROTECT || request == UFFDIO_WAKE;
}

int __real_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
	struct fault fault = before(name_of(request, arg));
	int result = -1;

	if (fault.how == HALF && has_range(request)) {
		struct uffdio_range *range = arg;
		__u64 len = range->len;

		range->len = half(len);
		if (range->len)
			(void)__real_ioctl(fd, request, arg);
		range->len = len;
	} else if (fault.how != FAIL && fault.how != HALF) {
		result = __real_ioctl(fd, request, arg);
	}
	after(fault);
	return result;
}
