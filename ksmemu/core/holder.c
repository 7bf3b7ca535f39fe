/*
 * Who may map an object, as the kernel knows: a process that may has an open file of the object, with a lock on
 * the byte that is its name (F_OFD_SETLK). The lock goes with the file: when the process dies or starts another
 * program. It keeps nobody from anything. ksmd asks which of them live, and knows who has told it what he maps.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

#include "core.h"

/* Names are offsets in a file, below this; ksmd/holders.py has it too. */
#define MAX_NAME (UINT64_C(1) << 62)

static int name(int file, uint64_t *ret)
{
	struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1 };
	uint64_t number;

	if (getrandom(&number, sizeof(number), 0) <
	    0) /* so few bytes come together or not at all */
		return -errno;
	number = 1 + number % (MAX_NAME - 1);
	lock.l_start = (off_t)number;
	if (fcntl(file, F_OFD_SETLK, &lock) < 0)
		return -errno;
	*ret = number;
	return 0;
}

int ksmemu_holder_open(int object, int flags, struct ksmemu_holder *ret)
{
	char path[64];
	int file, error;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", object);
	file = open(path, flags | O_CLOEXEC);
	if (file < 0)
		return -errno;
	error = name(file, &ret->name);
	if (error)
		close(file);
	else
		ret->file = file;
	return error;
}

void ksmemu_holder_close(struct ksmemu_holder *holder)
{
	if (holder->file >= 0)
		close(holder->file);
	holder->file = -1;
}
