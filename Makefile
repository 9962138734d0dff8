# `make demo` and `make test` are all a newcomer needs; each works alone on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
HF     := .venv-hf
RAY    := .venv-ray
TRACKERS := .venv-trackers
PEERS  := .venv-peers
SITE   := .venv-site
PEER   := $(PEERS)/.installed
RIVALS := $(PEERS)/.rivals
EXAMPLES := $(filter-out examples/common.py examples/terminal.py,$(wildcard examples/*.py))
SEEDS  := 0 1 2
SOURCES := callbacks deploy detectors docs monitor phasewatch examples tests

.PHONY: browser chaos chaos-short hf postgres ray trackers dashboards demo docs site layout examples test check lint types mypy slow bench bench-detection \
	bench-observables bench-pages bench-peers false-alarms clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/grokking.py --out phasewatch-demo
	$(if $(LIVE),$(BIN)/phasewatch serve phasewatch-demo/phasewatch.db,@echo "on the live page: $(BIN)/phasewatch serve phasewatch-demo/phasewatch.db, or make demo LIVE=1")

# All examples in full, three seeds each; their pictures and reports lie in phasewatch-examples.
examples: $(STAMP)
	@for script in $(EXAMPLES); do for seed in $(SEEDS); do echo "== $$script, seed $$seed"; \
		$(BIN)/python $$script --seed $$seed \
		--out phasewatch-examples/$$(basename $$script .py)-$$seed || exit 1; done; done

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not postgres and not browser" -q -n 2

slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not postgres and not browser" -q -n 2

# A server of its own, started and stopped by the tests. It needs Debian's package `postgresql`.
postgres: $(STAMP)
	@$(BIN)/python -c "import psycopg" 2>/dev/null || $(BIN)/pip install --quiet "psycopg[binary]>=3.1"
	$(BIN)/python -m pytest -m postgres -q tests/postgres

# The live page in a real browser: Debian's package `chromium`, or the one that playwright brings.
# With PHASEWATCH_PICTURES=FOLDER it leaves pictures of what it saw. Where npm is, the dashboards are
# drawn, too, with Grafana's own components.
browser: $(STAMP)
	@{ command -v npm >/dev/null && $(MAKE) --no-print-directory build/grafana/page.js; } || \
		echo "npm is not here, or cannot get Grafana's components: the dashboards are not drawn" >&2
	@$(BIN)/python -c "import playwright" 2>/dev/null || $(BIN)/pip install --quiet "playwright>=1.45"
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || $(BIN)/playwright install chromium
	$(BIN)/python -m pytest -m browser -q tests/browser

build/grafana/page.js: tests/browser/grafana/page.jsx tests/browser/grafana/package.json
	@mkdir -p build/grafana
	@cp $^ build/grafana
	@cd build/grafana && npm install --silent --no-audit --no-fund --ignore-scripts && npm run --silent build

# transformers, Ray, trackers and what they bring live in environments of their own, over that of the others.
define over-the-others
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/zz_shared.pth
	$(1)/bin/pip install --quiet -c constraints.txt "setuptools>=77"
	$(1)/bin/pip install --quiet -c constraints.txt --editable $(2)
	@touch $(1)/.installed
endef

$(HF)/.installed: $(STAMP)
	$(call over-the-others,$(HF),".[hf]" peft trl)

$(RAY)/.installed: $(STAMP)
	$(call over-the-others,$(RAY),".[ray]")

$(TRACKERS)/.installed: $(STAMP)
	$(call over-the-others,$(TRACKERS),"." "wandb>=0.19" "mlflow-skinny>=2.20" ipykernel nbclient)

hf: $(HF)/.installed
	$(HF)/bin/python -m pytest -m hf -q -n 2 tests/callbacks/huggingface tests/examples tests/monitor/backfill

# A cluster of two workers on this machine, started and stopped by the tests.
ray: $(RAY)/.installed
	$(RAY)/bin/python -m pytest -m ray -q tests/monitor/backfill

# The loggers of W&B and MLflow, writing on this machine alone, and a kernel of Jupyter.
trackers: $(TRACKERS)/.installed
	$(TRACKERS)/bin/python -m pytest -m trackers -q tests/callbacks tests/monitor/run

# Kills trainings at random and counts what is lost: see docs/reliability.md. About an hour.
chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/kills.py --kills 200

# A short form of it, for CI.
chaos-short: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/kills.py --kills 6

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# mypy and the site cannot follow the folder mapping of an editable install: the layout users see.
layout:
	@mkdir -p build/typing/phasewatch
	@for part in callbacks detectors monitor; do ln -sfn ../../../$$part build/typing/phasewatch/$$part; done
	@ln -sfn ../../../phasewatch/__init__.py build/typing/phasewatch/__init__.py

mypy: $(STAMP) layout
	$(BIN)/mypy
	MYPYPATH=deploy/grafana:build/typing $(BIN)/mypy deploy/grafana/build.py
	$(BIN)/mypy deploy/kubernetes/build.py

# Grafana's dashboards and alert rules are built and committed; a test holds both to each other.
dashboards: $(STAMP)
	$(BIN)/python deploy/grafana/build.py

check: lint mypy test slow postgres chaos-short hf ray trackers site

# Pages that are made from code; a test holds them equal.
docs: $(STAMP)
	$(BIN)/python docs/build_api.py
	$(BIN)/python docs/build_metrics.py
	$(BIN)/python docs/build_observables.py
	$(BIN)/python docs/build_runbook.py
	$(BIN)/python docs/build_schemas.py
	$(BIN)/python docs/build_streams.py

# The documentation as a site, in build/site: any warning is an error. In an environment of its own.
site: $(SITE)/.installed layout
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet --strict
	@echo "build/site/index.html"

$(SITE)/.installed: docs/requirements.txt
	@test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --quiet -r docs/requirements.txt
	@touch $@

bench: $(STAMP)
	@for script in tests/benchmarks/*.py; do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

# What a measurement of each observable takes, as `phasewatch observables` shows it; to be made anew
# when one is added (`--only NAME` on the command makes its row alone). On a quiet machine.
bench-observables: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/observables.py --write

# devinterp's dependencies would tie ours down: it lives in an environment of its own.
$(PEER): constraints.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -c "import torch" 2>/dev/null || $(PEERS)/bin/pip install --quiet -c constraints.txt torch
	$(PEERS)/bin/pip install --quiet -c constraints.txt devinterp==1.3.2
	@touch $@

bench-peers: $(STAMP) $(PEER)
	@for name in llc_step_cost llc_cost; do echo "== $$name"; OMP_NUM_THREADS=1 \
		PHASEWATCH_PEER_PYTHON=$(PEERS)/bin/python $(BIN)/python tests/benchmarks/$$name.py || exit 1; done

# What others detect with. One that the index lacks is left out, and its row says so.
$(RIVALS):
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@for name in river trainscope trainpulse; do \
		$(PEERS)/bin/pip install --quiet $$name || echo "$$name cannot be installed"; done
	@touch $@

bench-detection: $(STAMP) $(RIVALS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/local_change_model.py --left-out
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/detection.py --long

# What the pages of trainscope and TensorBoard show of the same run, and how soon. About a quarter of
# an hour.
bench-pages: $(STAMP) $(RIVALS)
	OMP_NUM_THREADS=1 PHASEWATCH_PEER_PYTHON=$(PEERS)/bin/python $(BIN)/python \
		tests/benchmarks/side_by_side.py --seeds 0 1 2

# The table that thresholds are taken from; to be made anew whenever a detector changes. It takes
# about half an hour; `--detectors slope_shift` on the first command makes one row of it anew.
false-alarms: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/false_alarms.py --write --points 100000
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/false_alarms.py --points 100000

clean:
	rm -rf $(VENV) $(HF) $(RAY) $(TRACKERS) $(PEERS) $(SITE) build dist *.egg-info phasewatch-demo phasewatch-examples
