# Everything starts from `make venv`, which the other targets make by themselves:
#   make demo   four processes share what they have in common, and get it back
#   make bench  workloads on ksmemu and, as root, on the kernel's own KSM
#   make test   lint, types, C warnings, all tests

# Debian's own, not the first in the path: the suite runs as another user too, who must be able to read it.
PYTHON ?= /usr/bin/python3
BIN := .venv/bin
CORE := $(wildcard ksmemu/core/*.c)
HEADERS := $(wildcard ksmemu/core/*.h)
STAMP := .venv/.installed
PACKAGES := fuse3 gcc libxxhash-dev mount procps python3-dev python3-venv util-linux

C_WARNINGS := -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wvla -Wswitch-enum -Wformat=2 -Werror

.PHONY: venv demo bench test lint style types c-warnings clean

venv: $(STAMP)

$(STAMP): pyproject.toml $(CORE) $(HEADERS)
	@.ci/packages $(PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: venv
	@$(BIN)/ksmemu demo

bench: venv
	@$(BIN)/ksmemu bench

# Hundreds of tests start processes: where bytecode is not kept, each would compile all of ksmemu again.
test: export PYTHONDONTWRITEBYTECODE :=

# Only root may compare with the kernel's own KSM, or keep it out of harm's way, and only root can become nobody.
test: lint
	@if [ "$$(id -u)" = 0 ]; then \
		$(BIN)/python -m pytest tests && echo "once more, as nobody" && tests/as_nobody.sh; \
	else \
		$(BIN)/python -m pytest -m "not root" tests && echo "left out: tests/oracle and tests/clients, which need root"; \
	fi

lint: style types c-warnings

style: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CORE) $(HEADERS)

types: venv
	$(BIN)/mypy

# The analyzer is slow and finds other things than the warnings: every file goes through both.
c-warnings: venv
	@include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	for file in $(CORE); do \
		for analyzer in "" -fanalyzer; do \
			echo "cc $$analyzer $$file"; \
			gcc $(C_WARNINGS) $$analyzer -isystem "$$include" -c $$file -o /dev/null || exit 1; \
		done; \
	done

clean:
	rm -rf .venv build *.egg-info ksmemu/*.so
