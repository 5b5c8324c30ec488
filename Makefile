# Every target sets up what it needs. `make repro` and `make test` are all that a fresh machine needs; `make` lists the others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
EXTRAS := grib,advection,s3,geo,dev
TESTS ?= tests
# processes that test side by side, each on one thread, since two threads beside other work are slow; a file at a time,
# since its tests share fixtures, and in their order, or files of few and long tests would come last and leave a process
# without work
WORKERS ?= 2
# models side by side: DVC runs one stage after the other, and on two processors most of them use one
LANES ?= $(shell test "$$(getconf _NPROCESSORS_ONLN)" -le 2 && echo 2 || echo 1)
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 20
LOCK := UV_FIND_LINKS= uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate pyproject.toml
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:  ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F '\t' '{printf "%-14s %s\n", $$1, $$2}'

.PHONY: help setup repro test test-fast campaign mutations check check-style check-types check-lock lock audit ui bench ablation models parameters architecture house replay pictures clean

setup: $(STAMP)  ## the virtual environment, by uv where it can be had and by pip elsewhere

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fieldcast needs Python 3.11 or later: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*
	@command -v cc >/dev/null || echo "no C compiler found: pysteps (advection) is built from source and needs one" >&2
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt uv 2>/dev/null \
	  && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]' \
	  || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

repro: setup  ## the whole pipeline; a second time only what has changed
	@fieldcast check
	@dvc repro prepare
	@dvc status --json | grep -oE '"(train|forecast|verify)@[a-z0-9_]+"' | sed 's/.*@//; s/"//' | awk '!seen[$$0]++' | tac \
	  | xargs -r -P $(LANES) -I{} dvc repro --single-item --quiet train@{} forecast@{} verify@{} 2>&1 | cat
	@dvc repro
	@echo "Report: data/comparison/report.html; make ui compares the runs in MLflow"

test: setup  ## all tests, then the slowest twenty
	@$(PYTEST) $(TESTS)

test-fast: setup  ## those without trainings, processes and real archives
	@$(PYTEST) -m "not slow" $(TESTS)

campaign: setup  ## the long forms of tests that `make test` runs in a short form, see docs/reliability.md
	@FIELDCAST_CAMPAIGN=1 $(PYTEST) $$(grep -rlE "tests\.campaign|mark\.campaign" --include "test_*.py" tests)

mutations: setup  ## guards taken away one by one, and the test that notices each
	@WORKERS=$(WORKERS) python -m tests.mutations $(WORDS)

check: setup  ## style, types, and that the lock file of packages is fresh, side by side
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target check-style check-types check-lock

check-style:
	@ruff check .
	@ruff format --check .

check-types:
	@mypy

check-lock:
	@$(LOCK) --constraint constraints.txt | diff - constraints.txt || { echo "constraints.txt is stale: make lock" >&2; exit 1; }

lock: setup  ## resolve all packages anew
	@$(LOCK) --upgrade --output-file constraints.txt

audit: setup  ## known vulnerabilities of the locked packages; needs a network
	@$(BIN)/uv tool run pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

ui: setup  ## MLflow in the browser
	@fieldcast ui

bench: setup  ## ratios against peers, measured in one run
	@for file in benchmarks/*.py; do python $$file || exit 1; done

models: setup  ## docs/models.md: what each variant of a model is and costs
	@python -m docs.tools.model_table

parameters: setup  ## docs/parameters.md and the JSON schema of params.yaml
	@python -m docs.tools.parameters

architecture: setup  ## docs/architecture.md: the drawing of imports between packages, and its tables
	@python -m docs.tools.architecture

ablation: setup  ## what each part of the default network is worth, by trainings without it; WORDS="--seeds 3"
	@python -m docs.tools.ablation $(WORDS)

house: setup  ## lines, functions, docstrings, look-alike lines and entries of folders of the code
	@python -m docs.tools.house

replay: setup  ## scheduled forecasts over a day of radar files that arrive with faults, under a simulated clock
	@python -m tests.live.replay "$${FIELDCAST_TEST_DATA:-../shared/data}/radar/bom" --format bom --coarsen 8 --model advection

pictures: setup  ## the pictures of README from the last run of the default project; needs Debian's chromium
	@cp data/comparison/figures/skill.png docs/skill.png
	@chromium --headless --no-sandbox --hide-scrollbars --window-size=1200,1500 --screenshot=docs/report.png \
	  "file://$(CURDIR)/data/comparison/report.html" 2>/dev/null

clean:  ## remove what the pipeline made; the environment and MLflow's records stay
	@rm -rf data/observations.zarr data/prepared data/checkpoints data/forecasts data/scores data/costs data/comparison data/compared data/resume
