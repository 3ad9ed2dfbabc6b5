# Two commands do everything: `make lab` and `make test`. Both first make .venv from requirements.lock.
#   CPU=1             take the small CPU-only torch from PyTorch's own index (read when .venv is first made)
#   PYTHON=python3.12 the Python to make .venv with
#   ARGS=--no-browser more arguments for JupyterLab or pytest
#   EXECUTE=          `make book` without running the lessons that changed
#   RUN=bash          what `make slurm` runs instead of JupyterLab
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help lab live slurm slides book test lint pair bench lock clean

READY := .venv/.ready
PY := .venv/bin/python
UV ?= uv
TORCH ?= 2.13.0
EXECUTE ?= 1
CPU_INDEX := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)
# JupyterLab refuses to run as root unless told; in a container root is all there is.
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

lab: $(READY)  ## Open JupyterLab on the first lesson (ARGS=--no-browser on a machine without a screen)
	@# Without its extension, jupytext leaves notebooks/py alone while a learner plays; authors run `make pair`.
	@exec $(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
		--ServerApp.jpserver_extensions="jupyterlab_jupytext=False" $(ALLOW_ROOT) $(ARGS)

live: $(READY)  ## For instructors: the cells of the two-hour path alone, large figures, a table of minutes
	@$(PY) -m fidle_utils.classroom
	@FIDLE_PRESENTATION=1 exec $(PY) -m jupyterlab --LabApp.default_url=/lab/tree/build/live/index.ipynb \
		--ServerApp.jpserver_extensions="jupyterlab_jupytext=False" $(ALLOW_ROOT) $(ARGS)

slurm: $(READY)  ## The lab beside a Slurm of two virtual nodes (as root; RUN=bash gives a shell instead)
	@exec $(PY) tests/slurm/mini_slurm.py $(or $(RUN),$(MAKE) --no-print-directory lab)

slides: $(READY) slides/node_modules/.ready  ## Draw the figures and write the slides to build/slides (needs Node.js and Chromium)
	$(PY) slides/draw.py
	$(PY) slides/build.py build/slides

book: $(READY)  ## Write the executed course as pages to build/book (EXECUTE= runs no lesson)
	$(PY) book/pages.py build/book-work $(if $(EXECUTE),,--no-execute)
	rm -rf build/book
	$(PY) -m sphinx -q -W --keep-going -E -d build/book-work/doctrees -c book build/book-work/source build/book
	@echo "build/book/index.html is the first page"

test: $(READY)  ## Run the tests of the package, then every notebook, on two cores
	$(PY) -m pytest -n 2 --dist loadscope $(ARGS)

lint: $(READY)  ## Check the style of the code and of the notebooks' cells
	$(PY) -m ruff check .

pair: $(READY)  ## Bring each notebook and its notebooks/py/*.py in step (the newer wins) and strip outputs
	$(PY) -m jupytext --sync notebooks/*.ipynb notebooks/py/*.py
	$(PY) -m nbconvert --clear-output --inplace --log-level=WARN notebooks/*.ipynb

bench: $(READY)  ## Measure the ranks beside torchrun and ipyparallel (minutes; leave the machine alone)
	$(PY) -m pytest tests/bench -s -o python_files='bench_*.py' $(ARGS)

lock:  ## Write requirements.lock anew from pyproject.toml (needs uv; says what to mend in environment.yml)
	@printf '%s\n' \
		"# Every version, exact, for Linux, macOS and Windows, Python 3.11 and later. Written by \`make lock\`." \
		"# Not listed: torch's own nvidia-*, cuda-* and triton packages. torch pins each of them exactly, and" \
		"# listing them here would force gigabytes of CUDA on a machine that asked for CPU=1." > requirements.lock.new
	printf 'torch==%s\n' $(TORCH) | $(UV) pip compile pyproject.toml --extra test --constraint - \
		--universal --python-version 3.11 --fork-strategy fewest --upgrade \
		--no-header --annotation-style line --quiet | grep -vE '^(nvidia|cuda|triton)' >> requirements.lock.new
	mv requirements.lock.new requirements.lock
	$(MAKE) $(READY)
	$(PY) -m pytest -q tests/test_house.py

clean:  ## Remove .venv and what tests and builds left behind
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info build
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp comes last: an installation that stopped half-way is never taken for a ready one.
$(READY): requirements.lock pyproject.toml
	@if [ ! -e $@ ]; then \
		for python in $(PYTHONS); do \
			"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
				&& { found=$$python; break; } || true; \
		done; \
		if [ -z "$${found:-}" ]; then \
			echo "No Python ≥ 3.11 with venv among: $(PYTHONS)." >&2; \
			echo "Install one (Debian, Ubuntu: sudo apt install python3-venv; else https://www.python.org/downloads)" >&2; \
			echo "or name yours: make lab PYTHON=/path/to/python3.12" >&2; \
			exit 1; \
		fi; \
		echo "Making .venv with $$("$$found" -V). This happens once and takes some minutes."; \
		"$$found" -m venv --clear .venv; \
	fi
	@rm -f $@
	@# --use-pep517: DeepSpeed comes as source, which an older pip would build in its own, deprecated way.
	$(PY) -m pip install --quiet --disable-pip-version-check --use-pep517 $(CPU_INDEX) -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# No question about news on first sight, and nothing asked of the network later.
	-@$(PY) -m jupyterlab.labextensions disable --level=sys_prefix \
		"@jupyterlab/apputils-extension:announcements" 2>/dev/null
	@touch $@

slides/node_modules/.ready: slides/package-lock.json
	@command -v npm >/dev/null || { echo "The slides need Node.js ≥ 18 and npm (Debian, Ubuntu: apt install nodejs npm)." >&2; exit 1; }
	npm ci --prefix slides --no-audit --no-fund --loglevel=error
	@touch $@
