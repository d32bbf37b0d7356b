# make demo    set everything up, then the main job on real input, told as a story
# make test    set everything up, then all tests (under 15 minutes on 2 cores)
# make check   lint, types, the quick unit and model tests (under 2 minutes)
# make bench   the benchmarks that compare with other stores (their packages are an extra)
# make shake   the tests with threads, processes and kills again, under conditions that differ (docs/testing.md; some 10 minutes)
# make asan / make tsan   the kernel under AddressSanitizer / ThreadSanitizer
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench shake asan tsan build browser clean

build: $(VENV)/.ready

# What is compiled (the kernel, the journal's framing) is built in place by an editable install, and anew when its sources change.
COMPILED := $(wildcard journal/*.pyx journal/*.h)
$(VENV)/.ready: pyproject.toml tools/setup.sh $(COMPILED) $(wildcard mdstore/btree/*.pyx mdstore/btree/*.pxi mdstore/btree/*.pxd mdstore/btree/*.h)
	PYTHON=$(PYTHON) bash tools/setup.sh $(VENV)
	@touch $@

demo: build
	$(BIN)/python -m mdstore.tools.demo

test: build browser
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# The reports are looked at in a browser.
browser:
	@bash tools/setup.sh browser

# The quick part: images in memory where there is room for them (the disk takes half the time), fewer runs of the models.
# They lie in a directory of the run's own, which goes with it, however it ends: what is in memory stays taken.
MEMORY := $(shell [ -w /dev/shm ] && [ "$$(df -Pk /dev/shm | awk 'END { print $$4 }')" -gt 2000000 ] && echo -p /dev/shm)
check: build
	$(BIN)/ruff check .
	$(BIN)/mypy
	@images=$$(mktemp -d $(MEMORY)) && trap 'rm -rf "$$images"' EXIT && trap 'exit 130' INT && trap 'exit 143' HUP TERM && \
	TMPDIR="$$images" MDSTORE_EXAMPLES=8 $(BIN)/python -m pytest -q -n 2 -m "not slow and not fuse" tests/unit tests/model

bench: build
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/mdstore bench all

shake: build browser
	PYTHON=$(BIN)/python bash tools/shake.sh

asan: build
	bash tools/sanitize.sh address

tsan: build
	bash tools/sanitize.sh thread

clean:
	rm -rf $(VENV) build *.egg-info mdstore/btree/_kernel.c mdstore/btree/*.so journal/_framing.c journal/*.so
