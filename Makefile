# `make demo` and `make test` are all a newcomer needs; each works alone on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-peers
PEER   := $(PEERS)/.installed
SOURCES := callbacks detectors docs monitor examples tests

.PHONY: demo test check lint types mypy slow bench bench-peers docs clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/grokking.py --out phasewatch-demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -q -n 2

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -q -n 2

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# mypy cannot follow the folder mapping of an editable install: give it the layout users see.
mypy: $(STAMP)
	@mkdir -p build/typing/phasewatch
	@for part in callbacks detectors monitor; do ln -sfn ../../../$$part build/typing/phasewatch/$$part; done
	$(BIN)/mypy

check: lint mypy test slow

# Pages that are made from code; a test holds them equal.
docs: $(STAMP)
	$(BIN)/python docs/build_metrics.py

bench: $(STAMP)
	@for script in tests/benchmarks/*.py; do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

# devinterp's dependencies would tie ours down: it lives in an environment of its own.
$(PEER): constraints.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -c "import torch" 2>/dev/null || $(PEERS)/bin/pip install --quiet -c constraints.txt torch
	$(PEERS)/bin/pip install --quiet -c constraints.txt devinterp==1.3.2
	@touch $@

bench-peers: $(STAMP) $(PEER)
	@for name in llc_step_cost llc_cost; do echo "== $$name"; OMP_NUM_THREADS=1 \
		PHASEWATCH_PEER_PYTHON=$(PEERS)/bin/python $(BIN)/python tests/benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info phasewatch-demo
