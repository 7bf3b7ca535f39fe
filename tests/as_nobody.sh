#!/bin/sh
# Run the tests that meet the kernel as an ordinary user: nobody, without any capability, and with no way
# to get one. They run in a copy, since the checkout may lie where nobody cannot go.
#
#   tests/as_nobody.sh [tests/…] [PYTEST OPTION…]      as root, after `make venv`
set -eu
cd "$(dirname "$0")/.."
python=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

there=$(mktemp -d "${TMPDIR:-/tmp}/ksmemu-nobody.XXXXXX")
trap 'rm -rf "$there"' EXIT
trap 'exit 130' INT TERM HUP

mkdir "$there/checkout" "$there/packages" "$there/home" "$there/tmp"
{ git -c safe.directory='*' ls-files -z; printf '%s\0' ksmemu/*.so ksmemu/mm/*.so; } |
	tar --create --null --files-from=- --ignore-failed-read | tar --extract --directory="$there/checkout"
tar --create --directory="$packages" --exclude=mypy --exclude=pip --exclude='clang_format*' \
	--exclude=__pycache__ . | tar --extract --directory="$there/packages"
chown -R nobody:nogroup "$there"
chmod 755 "$there"

case "${1-}" in
tests/*) ;;
*)
	# What depends on the user is how pages are held and who may do what: not how much memory it takes, what the
	# books say, or what a liar can send. One long race is enough.
	for step in attach checksum exec fuse guard merge merge_pid mprotect rehome renew run two_trackers; do
		set -- "$@" "tests/flow/test_$step.py"
	done
	set -- "$@" tests/guarantees tests/core \
		tests/hostile/test_instances.py tests/hostile/test_sudden_death.py tests/hostile/test_no_room.py \
		tests/hostile/test_frozen_worker.py \
		--ignore=tests/guarantees/test_metadata_is_small.py \
		--ignore=tests/guarantees/test_memory_comes_back.py \
		--ignore=tests/guarantees/test_no_operation_leaks.py \
		--ignore=tests/guarantees/test_equal_pages_need_few_mappings.py \
		--ignore=tests/guarantees/test_explanations_are_true.py
	;;
esac
cd "$there/checkout"
env -i KSMEMU_RACE_SECONDS=5 PATH="$PATH" LANG="${LANG:-C.UTF-8}" HOME="$there/home" TMPDIR="$there/tmp" \
	PYTHONPATH="$there/checkout:$there/packages" \
	setpriv --reuid=nobody --regid=nogroup --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \
	"$python" -m pytest -p no:cacheprovider -m 'not root' "$@"
