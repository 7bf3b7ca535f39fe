# Everything starts from `make venv`, which the other targets make by themselves:
#   make demo   four processes share what they have in common, and get it back
#   make bench  workloads on ksmemu and, as root, on the kernel's own KSM
#   make test   lint, types, C warnings, all tests
#   make coverage   what of the C core its tests reach
#   make soak   MINUTES=n: everything that happens to processes, at random, and every byte checked
#   make docs   the site, and the man pages, in build/docs
#   make kills  1,000 workers and 200 ksmd killed while they merge
#   make leaks  every operation 10,000 times (CALLS=n): more than an hour
#   make fuzz   what clients say to ksmd, led by coverage, for SECONDS=60

# Debian's own, not the first in the path: the suite runs as another user too, who must be able to read it.
PYTHON ?= /usr/bin/python3
BIN := .venv/bin
CORE := $(wildcard ksmemu/core/*.c)
HEADERS := $(wildcard ksmemu/core/*.h)
C_FILES := $(CORE) ksmemu/mm/data_memory.c
STAMP := .venv/.installed
PACKAGES := curl fuse3 gcc libxxhash-dev mount procps python3-dev python3-venv util-linux

C_WARNINGS := -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wvla -Wswitch-enum -Wformat=2 -Werror

# About half of the suite, and all that steers the kernel's own KSM.
LANE_1 := tests/oracle tests/clients tests/guarantees tests/flow/test_bench.py

MINUTES ?= 3
CALLS ?= 10000
SOAK = $(BIN)/python -m tests.soak --minutes $(MINUTES) $(SEED:%=--seed %)

PYTHON_INCLUDE = -isystem $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))') \
	$(addprefix -isystem ,$(wildcard .venv/lib/python*/site-packages/numpy/_core/include))

.PHONY: venv demo bench test in-lane-1 in-lane-2 as-nobody covered soaked soak kills leaks coverage fuzz lint style types docs c-warnings clean $(C_FILES:%=warnings-of/%)

venv: $(STAMP)

$(STAMP): pyproject.toml setup.py $(C_FILES) $(HEADERS)
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
# Most tests wait for other processes: root runs them in lanes, all at a time.
test: lint
	@if [ "$$(id -u)" = 0 ]; then \
		$(MAKE) --no-print-directory --keep-going --jobs in-lane-1 in-lane-2 as-nobody covered soaked; \
	else \
		$(BIN)/python -m pytest -m "not root" tests && echo "left out: tests/oracle and tests/clients, which need root"; \
	fi

# What of the C core its tests reach; fails where one has no reason (tests/support/coverage.py).
coverage: venv
	@$(BIN)/python -m tests.support.coverage

in-lane-1:
	@tests/lane.sh 1 $(BIN)/python -m pytest $(LANE_1)

in-lane-2:
	@tests/lane.sh 2 $(BIN)/python -m pytest tests $(LANE_1:%=--ignore=%)

covered:
	@tests/lane.sh coverage $(BIN)/python -m tests.support.coverage

as-nobody:
	@tests/lane.sh nobody tests/as_nobody.sh

soaked:
	@tests/lane.sh soak nice $(SOAK)

soak: venv
	@$(SOAK)

kills: venv
	KSMEMU_WORKER_KILLS=1000 KSMEMU_KSMD_KILLS=200 $(BIN)/python -m pytest tests/hostile/test_sudden_death.py

leaks: venv
	KSMEMU_CALLS=$(CALLS) $(BIN)/python -m pytest tests/guarantees/test_no_operation_leaks.py

SECONDS ?= 60

# Not among the tools of `make venv`: atheris has wheels for some versions of Python only.
fuzz: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.support.fuzz -max_total_time=$(SECONDS) -max_len=600 -len_control=0

lint: venv
	@$(MAKE) --no-print-directory --jobs="$$(nproc)" --output-sync=target style types docs c-warnings

style: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(C_FILES) $(HEADERS)

types: venv
	$(BIN)/mypy

c-warnings: $(C_FILES:%=warnings-of/%)

# The analyzer is slow and finds other things than the warnings: every file goes through both.
$(C_FILES:%=warnings-of/%): warnings-of/%: % venv
	gcc $(C_WARNINGS) $(PYTHON_INCLUDE) -c $< -o /dev/null
	gcc $(C_WARNINGS) -fanalyzer $(PYTHON_INCLUDE) -c $< -o /dev/null

# The site, and the man pages. What Sphinx warns of is an error.
docs: venv
	$(BIN)/python -m sphinx --quiet --fail-on-warning --builder html docs build/docs/html
	$(BIN)/python -m sphinx --quiet --fail-on-warning --builder man docs build/docs/man

clean:
	rm -rf .venv build *.egg-info ksmemu/*.so ksmemu/mm/*.so
