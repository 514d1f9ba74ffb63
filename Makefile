# `make demo` and `make test` need only git, make and Python 3.11 to 3.13; everything else is installed into .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo serve check test test-unit test-python bench bench-trust soak fuzz lock

# The first Python that has a supported version and can make virtual environments.
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { command -v $$python; break; }; done)
BIN := .venv/bin
WEIGHTS ?= none

help:
	@echo "make demo    train, export, score and reuse a model on synthetic images (WEIGHTS=imagenet or a path: fine-tune)"
	@echo "make serve   serve the demo's model at http://127.0.0.1:8000 until Ctrl-C"
	@echo "make test    all tests"
	@echo "make test-unit  the tests that start no Ray, in parallel"
	@echo "make check   ruff, pyright, import contracts, the API reference (docs/api/tlray.html)"
	@echo "make bench   the benchmarks (DATA= and WEIGHTS= as in README.md, BUNDLE= a bundle to serve)"
	@echo "make bench-trust  the benchmarks of what a model says about its errors (DATA=, WEIGHTS=, RUN= a run of probe)"
	@echo "make fuzz    all wrong requests and images, of which the unit tests send a sample"
	@echo "make soak    an endpoint under ten times its capacity; two endpoints, one killed often (DATA=, BUNDLE=)"
	@echo "make lock    update requirements.lock"

setup: .venv/installed

.venv/installed: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "tlray needs Python 3.11, 3.12 or 3.13 with venv (Debian: python3-venv)."; exit 1; }
	@echo "Setting up .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv
	@awk '/^[^ ]/{p=/^uv==/} p' requirements.lock > .venv/uv.txt
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --constraint requirements.lock \
		--config-setting editable_mode=compat -e . --group dev
	@touch $@

demo: setup
	@$(BIN)/python jobs/demo.py $(WEIGHTS)

DEMO := runs/demo
serve: setup
	@test -f $(DEMO)/run/bundle/bundle.json || { echo "There is no model yet: run \`make demo\` first."; exit 2; }
	@$(BIN)/tlray serve --bundle $(DEMO)/run/bundle --input-roots $(DEMO)/images --output-roots $(DEMO)/batches

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/build_api.py

# Two processes run one file after another, tests/e2e first: its files take longest. Each has a Ray of its own and takes
# up to 8 GB. If one dies, the run ends: pytest-xdist would wait for its tests for ever.
test: setup
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

# worksteal: tests of one file stay in one process, as far as possible, and share what they have built.
test-unit: setup
	$(BIN)/python -m pytest tests/unit -n auto --dist worksteal

# The unit tests on another Python: make test-python OTHER=/path/to/python3.13 VENV=.venv-3.13
test-python: setup
	$(BIN)/uv venv -q --clear --python $(OTHER) $(VENV)
	$(BIN)/uv pip install -q --python $(VENV)/bin/python --constraint requirements.lock \
		--config-setting editable_mode=compat -e . --group dev
	$(VENV)/bin/python -m pytest tests/unit -n auto --dist worksteal

bench: setup
	@test -d "$(DATA)" -a -f "$(WEIGHTS)" -a -d "$(BUNDLE)" || { echo "Give existing paths: make bench DATA=DIR WEIGHTS=FILE BUNDLE=DIR"; exit 2; }
	$(BIN)/python benchmarks/train_step.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/features_pass.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/features_twice.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/time_to_accuracy.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/scoring.py --data $(DATA) --bundle $(BUNDLE)
	$(BIN)/python benchmarks/serving.py --data $(DATA) --bundle $(BUNDLE)
	$(BIN)/python benchmarks/serving_turns.py --data $(DATA) --bundle $(BUNDLE)

FOREIGN := runs/foreign
bench-trust: setup
	@test -d "$(DATA)" -a -f "$(WEIGHTS)" -a -d "$(RUN)/features" || { echo "Give existing paths: make bench-trust DATA=DIR WEIGHTS=FILE RUN=DIR (of tlray train probe)"; exit 2; }
	$(BIN)/python benchmarks/interval_coverage.py
	$(BIN)/python benchmarks/planted_copies.py --data $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/planted_shortcuts.py
	$(BIN)/python benchmarks/audit_cost.py --data $(DATA) --weights $(WEIGHTS)
	rm -rf $(FOREIGN)/images
	$(BIN)/python benchmarks/foreign_images.py --run $(RUN) --out $(FOREIGN)/images
	$(BIN)/tlray features --data $(FOREIGN)/images --weights $(WEIGHTS) --out $(FOREIGN)/features --overwrite
	$(BIN)/python benchmarks/trust.py --run $(RUN) --foreign $(FOREIGN)/features
	$(BIN)/python benchmarks/trust_fine_tuned.py --run $(RUN) --weights $(WEIGHTS) --foreign $(FOREIGN)/images
	$(BIN)/python benchmarks/suggest_gain.py --run $(RUN)
	$(BIN)/python benchmarks/by_source.py --run $(RUN) --out benchmarks/results
	$(BIN)/python benchmarks/score_cost.py --bundle $(RUN)/bundle --data $(DATA)

# All wrong requests and images, of which the unit tests send a sample.
fuzz: setup
	TLRAY_FUZZ=all $(BIN)/python -m pytest tests/unit/serve_app/test_fuzz.py

soak: fuzz
	@test -d "$(DATA)" -a -d "$(BUNDLE)" || { echo "Give existing paths: make soak DATA=DIR BUNDLE=DIR"; exit 2; }
	$(BIN)/python benchmarks/overload.py --data $(DATA) --bundle $(BUNDLE)
	$(BIN)/python benchmarks/neighbours.py --data $(DATA) --bundle $(BUNDLE)

lock:
	@test -n "$(PYTHON)" || { echo "tlray needs Python 3.11, 3.12 or 3.13 with venv (Debian: python3-venv)."; exit 1; }
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/pip install -q uv; }
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--extra gpu --extra int8 --group dev pyproject.toml -o requirements.lock
