/* The switches of the test-only build: KSMEMU_BREAK names the step that is left out. */
#include <stdlib.h>
#include <string.h>

#include "core.h"

bool ksmemu_is_broken(const char *step)
{
	const char *broken = getenv("KSMEMU_BREAK");

	return broken && strcmp(broken, step) == 0;
}
