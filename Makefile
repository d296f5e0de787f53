# Gliotrail's commands; `make help` lists them.
# Needs Debian, git, make and Python 3.11. The rest is installed into .venv.

PYTHON ?= python3.11
VENV ?= .venv
SERVICES ?= chromium chromium-driver iproute2 postgresql
ARGS ?=
# of `make chaos`
KILLS ?= 200
SEED ?= 1
MINUTES ?= 10
CALLS ?= 40
# of `make test`, each on a core: tests/support/rooms.py tells what runs beside what
PROCESSES ?= -n 2 --dist loadscope --no-loadscope-reorder

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
# looked up before .venv comes first in PATH, where stages and tests find their `python`
BASE_PYTHON := $(shell command -v $(PYTHON))
export PATH := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(VENV)/bin:$(PATH)

# $(call install,FOLDER,CONSTRAINTS,OTHER FILES,WHAT): a virtual environment, once per content of
# the files. Two makes wait for each other. The stamp comes last, so that an install that was
# broken off starts afresh. PIP_CONSTRAINT also pins what builds packages (hatchling, setuptools).
define install
@whole() { [ "$$(cat "$(1)/.installed" 2>/dev/null)" = "$$key" ]; }
key=$$(cat $(2) $(3) | sha256sum)
if whole; then exit; fi
exec 9>>Makefile
flock 9
if whole; then exit; fi
echo "installing into $(1) (minutes, the first time)"
if ! [ -f "$(1)/.installed" ]; then
	"$(BASE_PYTHON)" -m venv --clear "$(1)"
fi
rm -f "$(1)/.installed"
if ! PIP_CONSTRAINT=$(2) "$(1)/bin/python" -m pip install --disable-pip-version-check \
	--progress-bar off $(4) >"$(1)/install.log" 2>&1; then
	tail -n 25 "$(1)/install.log" >&2
	echo "error: installing into $(1) failed; above are the last lines of $(1)/install.log" >&2
	exit 1
fi
echo "$$key" >"$(1)/.installed"
echo "installation took $$SECONDS s"
endef

.PHONY: help setup demo pictures ui docs test coverage demo-test chaos hostile dataset-test browser-test cluster-images cluster-test reproduce-test integrations-test tracking-compared tracking-cost sweep-cost scale-test gpu-check bench check deps fmt services peers audit resolve sbom clean python

help:
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: setup ## run the pipeline on two real patients and print the held-out patient's measures
	@dvc repro
	echo "dvc repro took $$SECONDS s"
	gliotrail metrics

pictures: demo services ## draw the pictures of README and the documents again, from the demo
	@cp results/evaluate/pictures/BRATS_119.png docs/pictures/held-out.png
	python -m tests.browser.screenshots

ui: setup ## open MLflow's pages on what was recorded
	@gliotrail ui $(ARGS)

docs: setup ## build the documents as a site in site/, and the reference from the code
	@python -m docs.generate
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	echo "open site/index.html"

test: setup ## all tests but the long ones; ARGS="tests/imaging -x" chooses
	@pytest $(PROCESSES) $(ARGS)

coverage: setup ## which lines of the package `make test` runs: a table, and pages in htmlcov/
	@pytest $(PROCESSES) --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

demo-test: setup ## the demo in a temporary clone, with its time and peak memory; the first change to it
	@pytest -m long -s tests/spine/test_demo.py tests/docs/test_change.py $(ARGS)

chaos: setup ## KILLS=200 processes killed at random from SEED, for MINUTES=10 each time, on from where it was stopped; each kind of call to MLflow spoilt; a disk filled at each write
	@python -m tests.tracking.kills --kills $(KILLS) --seed $(SEED) --minutes $(MINUTES)
	CHAOS_SEED=$(SEED) CHAOS_CALLS=$(CALLS) pytest -m long -s tests/runs tests/tracking tests/training/test_full_disk.py tests/cluster/test_submit_killed.py $(ARGS)

hostile: setup ## thousands of spoilt files and faults, from a seed that is told; HOSTILE_SEED=1 chooses it
	@pytest -m 'long or not long' -s tests/hostile $(ARGS)

dataset-test: setup ## data sets of any kind by `dvc repro`, and docs/how-to/own-data.md to the letter
	@pytest -m long -s tests/dataset $(ARGS)

browser-test: setup ## viewer, MLflow's pages and documents, looked at in a real browser
	@pytest -m long -s tests/browser $(ARGS)

cluster-images: setup ## build the images of `make cluster-test PART=containers` and slurm, by podman (minutes)
	@$(MAKE) --no-print-directory services SERVICES="aardvark-dns buildah iptables mmdebstrap netavark podman runc"
	tests/infra/images/build.sh

cluster-test: setup ## what needs a real cluster; PART=containers|slurm|nodes|services|user|ray is one of it
	@pytest -m long -s $(call part,$(PART)) $(ARGS)

# the tests of a part of `make cluster-test`
part = $(or $(part_$(or $1,all)),$(error PART=$1 is none of containers, slurm, nodes, services, user, ray))
part_containers := tests/infra/test_containers.py
part_slurm := tests/infra/test_slurm.py
part_nodes := tests/infra/test_nodes.py tests/cluster/test_two_nodes.py
part_services := tests/infra/test_services.py
part_user := tests/infra/test_user.py tests/infra/test_installation.py
part_ray := tests/cluster --ignore tests/cluster/test_two_nodes.py
part_all := tests/cluster tests/infra

reproduce-test: setup ## the demo's model on small crops, made again from the remotes alone
	@pytest -m long -s tests/spine/test_reproduce.py $(ARGS)

integrations-test: setup ## gliotrail.track within other libraries' trainers; installs Lightning and transformers first
	@python -m pip install --quiet -c constraints.txt -e '.[integrations]'
	pytest -m long -s tests/integrations $(ARGS)

tracking-compared: setup ## KIND=loop tracks the same loop in several ways, and kills it; results go on in .gliotrail/compared.jsonl
	@mkdir -p .gliotrail
	python -m tests.tracking.compared $(or $(KIND),table) --to .gliotrail/compared.jsonl $(ARGS)

tracking-cost: setup ## time that tracking takes of a training's loop, with servers up, down and hanging
	@python -m tests.tracking.loop_cost $(ARGS)

sweep-cost: setup ## time that a sweep of 1,000 trials takes beside the trials' own (half an hour and more)
	@python -m tests.cluster.sweep_cost $(ARGS)

scale-test: setup ## a training and a sweep on up to 16 raylets of this machine; ARGS="training --nodes 4" chooses
	@python -m tests.cluster.scale $(ARGS)

gpu-check: setup ## whether this machine's GPUs compute what its CPU does: a table of differences
	@python -m tests.cluster.gpu_check $(ARGS)

bench: setup peers ## the same work by Gliotrail and by its peers, side by side, into docs/log/bench.md
	@python -m tests.bench.compare $(ARGS)

check: setup ## format, lint, types, import layers, Kubernetes' manifests
	@status=0
	ruff format --check || status=1
	ruff check || status=1
	mypy -p gliotrail -p pipelines -p infra || status=1
	lint-imports --no-logo || status=1
	python -m tests.support.kubernetes || status=1
	exit $$status

deps: setup ## write into dvc.yaml which code each stage imports
	@python -m tests.spine.dvc_deps

fmt: setup ## format the code and mend what ruff can mend
	@ruff format
	ruff check --fix

setup: python ## make .venv with everything pinned (the other commands do it by themselves)
	$(call install,$(VENV),constraints.txt,pyproject.toml,-e '.[dev]')

peers: python ## make .venv-bench, with the libraries that Gliotrail is compared with
	$(call install,.venv-bench,constraints-bench.txt,,-r constraints-bench.txt)

audit: .venv-audit-tools ## compare the pins with known vulnerabilities; fails where it can't ask
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt $(ARGS)

resolve: .venv-audit-tools ## whether the pins can be installed by Python 3.11.0, 3.12 and 3.13, and with CUDA
	@for version in 3.11.0 3.12 3.13; do
		.venv-audit/bin/uv pip compile --quiet --all-extras --system-certs --python-version $$version \
			--constraints constraints.txt --constraints constraints-cuda.txt --output-file .venv-audit/resolved.txt pyproject.toml
		echo "Python $$version: $$(grep -c == .venv-audit/resolved.txt) packages"
	done

sbom: setup .venv-audit-tools ## write what .venv holds to sbom.json, a software bill of materials (CycloneDX)
	@.venv-audit/bin/cyclonedx-py environment --pyproject pyproject.toml -o sbom.json $(VENV)/bin/python

.PHONY: .venv-audit-tools
.venv-audit-tools: python
	$(call install,.venv-audit,constraints-audit.txt,,-r constraints-audit.txt)

python:
	@if ! "$(BASE_PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
		echo "error: PYTHON=$(PYTHON) is no Python 3.11 to 3.13; try make PYTHON=/path/to/python3.11" >&2
		exit 1
	fi
	if ! "$(BASE_PYTHON)" -c 'import ensurepip' 2>/dev/null; then
		$(MAKE) --no-print-directory services SERVICES=python3.11-venv
	fi

services: ## install the Debian packages that some tests need (browser, PostgreSQL, ip)
	@missing=()
	for package in $(SERVICES); do
		dpkg-query -W -f '$${db:Status-Status}\n' "$$package" 2>/dev/null | grep -qx installed ||
			missing+=("$$package")
	done
	if [ $${#missing[@]} = 0 ]; then exit; fi
	echo "installing $${missing[*]} with apt-get"
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo
	$$sudo apt-get update -qq
	$$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null

clean: ## remove caches; data, results, runs and .venv stay
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov site dist
	find platform pipelines tests -name __pycache__ -prune -exec rm -rf {} +
	echo "left alone: data/, results/, .gliotrail/ (runs), .dvc/cache, .venv"
