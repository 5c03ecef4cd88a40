# make sample: from a clean clone to finished reports on photographs and the embedded dataset. make test: lint and tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
# Small networks use few cores: on a CPU the sample run is two processes. On a GPU it is one, as for a dataset in ARGS.
RANKS ?= $(if $(findstring --dataset,$(ARGS)),1,$(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo 2))

.PHONY: sample test slow lint format seeds bench clean

sample: $(VENV)/.installed
	$(RUN) run_sample.py --ranks $(RANKS) --dataset photos
	$(RUN) run_sample.py --ranks $(RANKS) $(ARGS)

# Two processes of one thread each: half the time on two cores.
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

# Minutes: the browser, signals, kills, memory, rare cases. Before a release.
slow: $(VENV)/.installed-dev
	$(RUN) -m pytest -m slow $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Scores over five seeds: the whole pipeline once per seed, and whether they tell the story of the paper.
seeds: $(VENV)/.installed
	$(RUN) -m benchmarks.shapes_seeds --ranks $(RANKS) $(ARGS)

# Each fast form against a plain one, on this machine's CPU.
bench: $(VENV)/.installed-dev
	$(RUN) -m benchmarks.cpu $(ARGS)

$(VENV)/.installed: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt $(CONSTRAINTS)
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf result
