# The commands of this project. Each creates .venv and installs what it needs where that is missing.
.DEFAULT_GOAL := help
.PHONY: help book serve test lint verify notebooks bench clean

PYTHON ?= python3
PORT ?= 8000
NB ?=
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
BUILT := _build/.built

# Both for speed (two test processes on two cores) and for equal numbers everywhere.
export OMP_NUM_THREADS := 1
export PYTHONUTF8 := 1

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- installing: once, and again only when the pins or the package's metadata change

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"make: the pinned packages need Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

# --- the book

# What the site is made from.
SOURCES := $(shell find book ppo_edu -type f -not -path '*/.*' -not -path '*__pycache__*' -not -name '* *') _config.yml

# From nothing every time: it takes seconds, and Sphinx's caches leave stale pages and links behind.
define BUILD
	@rm -rf _build
	$(VENV)/bin/jupyter-book build book --config _config.yml --path-output . -W -n --keep-going --all
	@touch $(BUILT)
endef

$(BUILT): $(INSTALLED) $(SOURCES)
	$(BUILD)

book: $(INSTALLED)  ## build the site, warnings as errors
	$(BUILD)
	@echo
	@echo "The book is built. Open _build/html/index.html, or run \`make serve\` and open http://localhost:$(PORT)"

serve: $(BUILT)  ## serve the site on localhost:PORT (8000)
	@echo "http://localhost:$(PORT)  (Ctrl-C stops)"
	@cd _build/html && exec ../../$(RUN) -m http.server $(PORT) --bind 127.0.0.1

notebooks: $(INSTALLED)  ## re-execute all notebooks in place (NB=book/07-....ipynb for one)
	$(VENV)/bin/ruff format --quiet --line-length 75 $(or $(NB),book/*.ipynb)
	$(RUN) book/_tools/execute.py $(NB)

# --- tests

lint: $(INSTALLED)  ## style of the code: ruff, without changing anything
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --exclude '*.ipynb' .
	$(VENV)/bin/ruff format --check --line-length 75 book/*.ipynb

test: lint $(BUILT)  ## style, unit tests, the built site in a browser, and every notebook against its outputs
	$(RUN) -m pytest -n 2 --dist loadfile
	$(RUN) -m pytest book --nbval --nbval-sanitize-with tests/sanitize.cfg --nbval-cell-timeout 300 -n 2 --dist loadfile

verify: $(INSTALLED)  ## the long checks: several seeds, whole pipelines
	$(RUN) -m pytest -m verify

bench: $(INSTALLED)  ## this package beside its peers: CartPole, and a language model (their interpreters: see benchmarks/*_vs_peers.py)
	$(RUN) -m benchmarks.cartpole_vs_peers
	$(RUN) -m benchmarks.lm_vs_peers

clean:  ## remove what was built (the environment stays)
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
