# Every command of the project. `make` alone lists them; nothing but make and Python 3.11 or newer is needed.

PYTHON ?= python3
PORT ?= 8000
SEEDS ?= 0-9999
# A machine without a GPU: make book TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# The browser of make browser-test: the first one found
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome google-chrome-stable,$(shell command -v $(name) 2>/dev/null)))

# Processes of the tests: one a core, of at most four, since each takes a gigabyte and more. Another number: make test JOBS=8
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Small networks train no faster with two threads, and far slower on a busy machine: one thread a process,
# and several processes instead.
export OMP_NUM_THREADS := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup book student site student-test slides epub pdf test unit notebooks lint soak browser-test format hooks serve lab clean distclean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the pinned packages (the other targets do this themselves)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "minicl needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install $$(grep -E '^(torch|torchvision)==' requirements.txt) --index-url $(TORCH_INDEX)
endif
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

book: $(READY) ## run every notebook that has no valid result yet with nbval, and build the book, without a warning
	$(BIN)/python tools/fill_cache.py --jobs $(JOBS)
	$(BIN)/jupyter-book build . --all -W -n --keep-going --quiet
	$(BIN)/python tools/edition.py check
	$(BIN)/python tools/edition.py test --quickest
	$(BIN)/python tools/check_book.py

student: book ## the notebooks to work in, packed: _build/student.zip, and with solutions _build/teacher.zip
	$(BIN)/python tools/edition.py zip

site: student epub pdf ## the book as it is published: _build/html, with downloads
	$(BIN)/python tools/edition.py publish

student-test: $(READY) ## run every notebook of the student's edition, outside the clone
	$(BIN)/python tools/edition.py test

slides: $(READY) ## slides for teaching, from the figures of the run: _build/slides/index.html (needs npm, once)
	$(BIN)/python tools/fill_cache.py
	$(BIN)/python tools/slides.py

epub: $(READY) ## the book for reading offline: _build/epub/continual-learning.epub
	$(BIN)/python tools/fill_cache.py
	$(BIN)/jupyter-book build . --builder custom --custom-builder epub --quiet
	@echo _build/epub/continual-learning.epub

pdf: book ## the chapters for paper: _build/pdf/continual-learning.pdf (needs Chromium)
	@if [ -z "$(CHROMIUM)" ]; then \
	  echo "pdf: skipped, no Chromium here (Debian, Ubuntu: apt install chromium; or name one: make pdf CHROMIUM=path)"; \
	else \
	  CHROMIUM="$(CHROMIUM)" $(BIN)/python tools/pdf.py; \
	fi

test: unit lint ## unit tests, lint, format and types; the notebooks are tested by make book

# Of a test with many rows one in so many is taken. All of them: make unit EVERY=1, or make soak
EVERY ?= 3

unit: $(READY) ## unit tests alone
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --every $(EVERY)

# Seconds that a cell may take. On a slow machine: make test MINICL_TIMEOUT_FACTOR=4
MINICL_TIMEOUT_FACTOR ?= 1
CELL_TIMEOUT = $(shell awk 'BEGIN { print int(300 * $(MINICL_TIMEOUT_FACTOR)) }')
export MINICL_TIMEOUT_FACTOR

notebooks: $(READY) ## run every notebook with nbval, whatever was run before; make book takes the results
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=$(CELL_TIMEOUT) -n $(JOBS) --dist loadscope book

lint: $(READY) ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(READY) ## every row of every test, then random cases of no forgetting (SEEDS=0-9999); no part of make test
	MINICL_ALL=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
	$(BIN)/python -m minicl.testing --seeds $(SEEDS)

browser-test: $(READY) ## read the built book in Chromium: every page, no network, axe-core (CHROMIUM=path)
	@if [ -z "$(CHROMIUM)" ]; then \
	  echo "browser-test: skipped, no Chromium here (Debian, Ubuntu: apt install chromium; or name one: make browser-test CHROMIUM=path)"; \
	elif ! "$(CHROMIUM)" --version >/dev/null 2>&1; then \
	  echo "browser-test: skipped, $(CHROMIUM) does not start (name another: make browser-test CHROMIUM=path)"; \
	elif [ ! -f _build/html/index.html ]; then \
	  echo "browser-test: no book in _build/html; run 'make book' first" >&2; exit 1; \
	else \
	  CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest --confcutdir=tests/browser -n $(JOBS) tests/browser; \
	fi

format: $(READY) ## let ruff put code and notebooks in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(READY) ## look at every commit before it is made: ruff, notebooks without outputs, its subject
	$(BIN)/pre-commit install --hook-type pre-commit --hook-type commit-msg

serve: book ## show the book on localhost (PORT=8000)
	@echo "http://127.0.0.1:$(PORT)/ (Ctrl-C stops it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

# The notebooks that JupyterLab opens. Those of the book as they are written: make lab NOTEBOOKS=book
NOTEBOOKS ?= student

lab: $(READY) ## open the student's edition in JupyterLab: numbers filled in, cells for answers
	@if [ "$(NOTEBOOKS)" = student ]; then $(BIN)/python tools/edition.py lab; fi
	$(BIN)/jupyter lab $(NOTEBOOKS)

clean: ## remove what was built; .venv stays
	rm -rf _build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
