# make book | test | lab | help. What to run, and when, is decided by workflow/Snakefile.
PROFILE ?= demo
DATASET ?= procedural
DATA_ROOT ?=
CATEGORIES ?=
DEVICE ?= auto
SETTINGS ?=
CHAPTER ?=
JOBS ?= 2
HTML ?=
ARGS ?=
# Handed over by the environment as they were given: neither make nor the shell reads a `$`, a quote
# or a blank in them. Files are in UTF-8, whatever the locale.
$(foreach name,PROFILE DATASET DATA_ROOT CATEGORIES DEVICE SETTINGS CHAPTER HTML,\
	$(eval export G2SF_$(name) := $$(value $(name))))
export PYTHONUTF8 := 1
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
GPU ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo 0)
FAISS := $(if $(filter 1,$(GPU)),gpu,cpu)
PY := .venv/bin/python
STAMP := .venv/installed-$(FAISS)
SHELL := /bin/bash
.DELETE_ON_ERROR:

.PHONY: help book chapter test lab weights check-data clean readme lock environment
help:
	@echo "make book   fit, score, and build the book: _build/html/index.html, or HTML=its folder;"
	@echo "            that of a real data set: _build/PROFILE-DATASET/html/index.html"
	@echo "            PROFILE=demo|smoke|paper  DATASET=procedural|mvtec3d|eyecandies|folder"
	@echo "            DATA_ROOT=folder of the data set  CATEGORIES='bagel foam' (all), or"
	@echo "            CATEGORIES=\"['part a', '001']\" where a name has blanks or commas"
	@echo "            JOBS=cores (2)  DEVICE=auto|cpu|cuda  GPU=1|0: which faiss is installed"
	@echo "            (1 where there is an NVIDIA driver)  SETTINGS='{alpha: 2.0}' single settings"
	@echo "            ARGS='-n' more for Snakemake"
	@echo "make chapter CHAPTER=07_table4_loss_ablation   one notebook and what it needs, no book;"
	@echo "            the same variables"
	@echo "make test   style, tests, the smoke profile of the whole road, its book in a browser"
	@echo "make lab    JupyterLab on the notebooks"
	@echo "make check-data  read a real data set through and list what is wrong with it:"
	@echo "            DATASET=mvtec3d|eyecandies|folder  DATA_ROOT=its folder"
	@echo "make weights     fetch the Point-MAE checkpoint, for PROFILE=paper, to data/weights"
	@echo "make readme write the committed results into README.md"
	@echo "make lock   write requirements.lock from what is installed"
	@echo "make clean  remove what was computed and built (not .venv, weights, real data)"

environment: $(STAMP)
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "g2sf-book: Python 3.11 or newer is needed and none was found;" \
		"install it, or say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) workflow/bootstrap.py --faiss $(FAISS)

PLACE = --profile="$$G2SF_PROFILE" --dataset="$$G2SF_DATASET" --data-root="$$G2SF_DATA_ROOT"
RUN = $(PY) workflow/run.py $(PLACE) --jobs $(JOBS) --html="$$G2SF_HTML" \
	--categories="$$G2SF_CATEGORIES" --device="$$G2SF_DEVICE" --settings="$$G2SF_SETTINGS" $(ARGS)

book: $(STAMP)
	@$(RUN)

chapter: $(STAMP)
	@test -n "$$G2SF_CHAPTER" || { echo "g2sf-book: say which notebook is to be run, e.g." \
		"make chapter CHAPTER=07_table4_loss_ablation" >&2; exit 2; }
	@$(RUN) --chapter="$$G2SF_CHAPTER"

test: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pytest --ignore tests/test_book.py
	$(PY) workflow/run.py --profile smoke --jobs $(JOBS) --html _build/smoke/html
	$(PY) workflow/bootstrap.py --browser
	G2SF_BOOK=_build/smoke/html $(PY) -m pytest tests/test_book.py

# Kernels start in the repository root, as under papermill, though only notebooks/ is listed. The
# config keeps JupyterLab from asking to rebuild itself for an extension that open3d brings.
lab: $(STAMP)
	$(PY) -m jupyterlab --config=workflow/jupyter_lab.json --ServerApp.root_dir="$(CURDIR)/notebooks" \
		--MappingKernelManager.root_dir="$(CURDIR)"

weights: $(STAMP)
	@$(PY) -m g2sf_lib.features.weights

check-data: $(STAMP)
	@test "$$G2SF_DATASET" != procedural || { echo "g2sf-book: say which data set is to be checked:" \
		"make check-data DATASET=mvtec3d|eyecandies|folder DATA_ROOT=its folder" >&2; exit 2; }
	@$(PY) -m g2sf_lib.datasets.check --dataset="$$G2SF_DATASET" --data-root="$$G2SF_DATA_ROOT"

readme: $(STAMP)
	$(PY) -m g2sf_lib.results readme $(PLACE)

lock: $(STAMP)
	$(PY) workflow/bootstrap.py --lock

clean:
	rm -rf _build book/executed data/runs data/raw/procedural-* .snakemake
