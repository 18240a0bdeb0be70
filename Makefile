# make demo and make test work from a clean clone with Python 3.11 or newer and make alone.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
# In a clean clone mypy takes a minute of one core, while pytest starts its workers.
BESIDE_TYPES := scripts/beside.sh "$(BIN)/mypy"
# Constraints stand on every install line: without them pip may fetch another torch.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# DeepSpeed is built from source by a setup.py that imports torch: it must find this torch, not one of its own.
BUILD_WITH := torch numpy setuptools wheel ninja py-cpuinfo hatchling editables
SYSTEM_PACKAGES := git=git g++=g++ ip=iproute2 unshare=util-linux mkfs.ext4=e2fsprogs mkfs.btrfs=btrfs-progs
BENCHMARKS := step_overhead compiled optimizers synchronisation two_processes startup resume memory checkpoint checkpoint_ranks checkpoint_blocked data parallel pipeline_idle

# What is built of this checkout lies beside other versions that are there already, in a folder of its own.
SITE ?= build/docs
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' runner/__init__.py)
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --doctree-dir build/doctrees

.PHONY: demo test test-all lint style types docs docs-links bench release clean

demo: $(VENV)/installed-demo  ## train the digits recipe to the end
	scripts/demo.sh $(BIN)

test: style  ## format and lint, then the whole suite but what is exhaustive, and types beside it
	@scripts/system_packages.sh $(SYSTEM_PACKAGES)
	@scripts/language_server.sh $(VENV)/yaml-language-server
	$(BESIDE_TYPES) $(PYTEST) -m "not exhaustive"

test-all: style  ## the same with all of the suite; the matrices are a file each, so that its cells are handed out
	@scripts/system_packages.sh $(SYSTEM_PACKAGES)
	@scripts/language_server.sh $(VENV)/yaml-language-server
	$(BESIDE_TYPES) $(PYTEST) --dist worksteal

lint: style types  ## format, lint and types

style: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

docs: $(VENV)/installed-docs  ## the documentation as a site; every warning and every link that leads nowhere is an error
	rm -rf $(SITE)/$(VERSION)
	$(SPHINX) --builder html docs $(SITE)/$(VERSION)
	@echo "open $(SITE)/index.html"

docs-links: $(VENV)/installed-docs  ## look up every link that leaves the site, which takes a network
	$(SPHINX) --builder linkcheck docs build/docs-links

bench: $(VENV)/installed-dev  ## ratios beside hand-written loops
	for one in $(BENCHMARKS); do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$one.py || exit 1; done

release: $(VENV)/installed-release  ## build and check what is uploaded; make release REHEARSE=--rehearse before it has a date
	scripts/release.sh $(BIN) $(REHEARSE)

clean:  ## what was built and installed; runs stay in outputs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "runner needs Python 3.11: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: made again when what it installs has changed.
$(VENV)/installed-%: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) $(BUILD_WITH)
	DS_BUILD_OPS=0 $(INSTALL) --no-build-isolation --editable ".[$*]"
	touch $@
