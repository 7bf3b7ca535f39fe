/* Scope guards: what a scope opened, the scope closes. Only what the core uses. */
#ifndef KSMEMU_CLEANUP_H
#define KSMEMU_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void ksmemu_unlock(pthread_mutex_t **lock)
{
	pthread_mutex_unlock(*lock);
}

static inline void ksmemu_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void ksmemu_free(void *pointer)
{
	free(*(void **)pointer);
}

/* Take the mutex until the end of the scope. */
#define GUARD(mutex)                                                                               \
	pthread_mutex_t *guard_ __attribute__((cleanup(ksmemu_unlock))) = (mutex);                 \
	pthread_mutex_lock(guard_)

/* Close this descriptor at the end of the scope, unless it is negative by then. */
#define AUTO_CLOSE __attribute__((cleanup(ksmemu_close)))

/* Free what this pointer points to at the end of the scope. */
#define AUTO_FREE __attribute__((cleanup(ksmemu_free)))

#endif
