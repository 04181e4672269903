# Everything here works as the first command on a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Its dependencies do not agree with ours.
CHECKOV := .venv/checkov
CHECKOV_VERSION := 3.3.30
CHECKOV_INSTALLED := $(CHECKOV)/.installed-$(CHECKOV_VERSION)
# Those that need neither data nor the demo's run; the others' first lines say what to give them.
BENCHMARKS := autoscaler doctor mixtures ranks rolling_update serving training_speed

.PHONY: demo test check check-deploy protos docs bench images images-offline clean help
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(INSTALLED)  ## train on digits, export, serve, ask for images: writes demo/grid.png
	$(BIN)/python demo/demo.py

# Two at a time, for most wait for something; more would slow down those that watch the time. Where
# both train, threads that wait must not spin: they would take the CPUs from those they wait for.
test: $(INSTALLED)  ## run every test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

check: check-deploy  ## lint, types, proto lint, generated code up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py demo/*.py deploy/*.py deploy/*/*.py docs/*.py protos/*.py
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/python protos/generate.py --check
	$(BIN)/python deploy/monitoring/generate_prometheus_rule.py --check
	$(BIN)/python deploy/monitoring/generate_dashboard.py --check

check-deploy: $(INSTALLED) $(CHECKOV_INSTALLED)  ## checkov on every manifest; `make check` has it too
	$(BIN)/python -m pytest -q tests/test_deploy_checkov.py

protos: $(INSTALLED)  ## write the generated code anew from protos/
	$(BIN)/python protos/generate.py

docs: $(INSTALLED)  ## write docs/settings.md anew from the declarations
	$(BIN)/python docs/generate_settings.py

bench: $(INSTALLED)  ## run every benchmark that fits a small machine; see docs/benchmarks.md
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

images:  ## build ganserve:cpu, ganserve:gpu and gantrain; IMAGES="cpu train" some of them
	$(PYTHON) deploy/images.py $(IMAGES) -- $(BUILD_ARGUMENTS)

images-offline: $(INSTALLED)  ## build and try those for CPUs without a registry; see docs/containers.md
	$(BIN)/python deploy/images_offline.py

clean:  ## remove what the targets above made
	rm -rf .venv demo/run demo/models demo/grid.png *.egg-info

# The stamp is written last, so an interrupted installation starts again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"Python 3.11 or newer is needed, this is {v.major}.{v.minor}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[train,cpu,dev]'
	@touch $@

$(CHECKOV_INSTALLED): | $(INSTALLED)
	$(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --progress-bar on --no-compile checkov==$(CHECKOV_VERSION)
	@touch $@
