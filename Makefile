PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NAMESPACE := build/typing

.PHONY: install demo test lint bench clean

install: $(STAMP)

# torch goes first and pinned: an unpinned one may be a CUDA build of several GB.
$(STAMP): pyproject.toml constraints.txt requirements-demo.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[extract,spacy,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-demo.txt
	touch $@

demo: install
	$(BIN)/neuronlake demo

test: install lint
	$(BIN)/python -m pytest

# mypy finds the namespace through a link: neuronlake -> this folder
lint: install
	mkdir -p $(NAMESPACE) && ln -sfn ../.. $(NAMESPACE)/neuronlake
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(NAMESPACE) $(BIN)/mypy -p neuronlake.store -p neuronlake.extractor -p neuronlake.analysis -p neuronlake.cli

bench: install
	$(BIN)/python -m benchmarks all

clean:
	rm -rf .venv build demo *.egg-info
