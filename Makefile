# Everything here works as the first command on a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check protos docs bench clean help
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(INSTALLED)  ## train on digits, export, serve, ask for images: writes demo/grid.png
	$(BIN)/python demo/demo.py

test: $(INSTALLED)  ## run every test
	$(BIN)/python -m pytest $(TESTS)

check: $(INSTALLED)  ## lint, types, proto lint, generated code up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py demo/*.py docs/*.py protos/*.py
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/python protos/generate.py --check

protos: $(INSTALLED)  ## write the generated code anew from protos/
	$(BIN)/python protos/generate.py

docs: $(INSTALLED)  ## write docs/settings.md anew from the declarations
	$(BIN)/python docs/generate_settings.py

bench: $(INSTALLED)  ## run every benchmark that fits a small machine; see docs/benchmarks.md
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## remove what the targets above made
	rm -rf .venv demo/run demo/models demo/grid.png *.egg-info

# The stamp is written last, so an interrupted installation starts again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"Python 3.11 or newer is needed, this is {v.major}.{v.minor}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[train,cpu,dev]'
	@touch $@
