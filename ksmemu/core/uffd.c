/* The two userfaultfds: track records writes (asynchronous), freeze holds writers (synchronous). */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "core.h"
#include "uapi.h"

static int open_any(bool *user_mode)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	*user_mode = false;
	if (fd >= 0 || errno != EPERM)
		return fd >= 0 ? fd : -errno;
	AUTO_CLOSE int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev >= 0) {
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC);
		if (fd >= 0)
			return fd;
	}
	*user_mode = true;
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	return fd >= 0 ? fd : -errno;
}

int ksmemu_uffd_open(uint64_t features, uint64_t *ret_features, bool *ret_user_mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	bool user_mode;
	int fd = open_any(&user_mode);

	if (fd < 0)
		return fd;
	if (ioctl(fd, UFFDIO_API, &api) < 0) {
		int error = -errno;

		close(fd);
		return error;
	}
	if (ret_features)
		*ret_features = api.features;
	if (ret_user_mode)
		*ret_user_mode = user_mode;
	return fd;
}

int ksmemu_uffd_register(int uffd, uintptr_t start, size_t size, uint64_t mode)
{
	struct uffdio_register arg = { .range = { start, size }, .mode = mode };

	return ioctl(uffd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;
}

int ksmemu_uffd_unregister(int uffd, uintptr_t start, size_t size)
{
	struct uffdio_range arg = { start, size };

	return ioctl(uffd, UFFDIO_UNREGISTER, &arg) < 0 ? -errno : 0;
}

int ksmemu_uffd_protect(int uffd, uintptr_t start, size_t size)
{
	struct uffdio_writeprotect arg = {
		.range = { start, size },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	/*
	 * SAFE: protects, never exposes. On track a write clears the mark by itself; on freeze a
	 * writer sleeps until the wake that every caller owes.
	 */
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) < 0 ? -errno : 0;
}

int ksmemu_uffd_unprotect(int uffd, uintptr_t start, size_t size)
{
	struct uffdio_writeprotect arg = { .range = { start, size } };

	/*
	 * SAFE: only ends what a freeze began that came to nothing: the page shows what it did before. The kernel
	 * does not ask whose protection it is: all that was frozen was registered with this userfaultfd.
	 */
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) < 0 ? -errno : 0;
}

void ksmemu_uffd_wake(int uffd, uintptr_t start, size_t size)
{
	struct uffdio_range arg = { start, size };

	if (!ksmemu_is_broken("wake"))
		(void)ioctl(uffd, UFFDIO_WAKE,
			    &arg); /* the kernel asks only whether the range is one */
}
