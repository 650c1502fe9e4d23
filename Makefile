PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NAMESPACE := build/typing
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed

.PHONY: install demo docs test test-vllm lint bench clean

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

# A worker per core computes on one thread: idle threads that spin for work on a core that another worker uses cost more.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# vLLM pins torch, numba and transformers: an environment of its own (4 GB).
$(VLLM_STAMP): pyproject.toml requirements-vllm.txt requirements-demo.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-demo.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test-vllm: $(VLLM_STAMP)
	$(VLLM_BIN)/python -m pytest tests/vllm

# mypy finds the namespace through a link: neuronlake -> this folder
lint: install
	mkdir -p $(NAMESPACE) && ln -sfn ../.. $(NAMESPACE)/neuronlake
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(NAMESPACE) $(BIN)/mypy -p neuronlake.store -p neuronlake.extractor -p neuronlake.analysis -p neuronlake.cli

# A warning, such as a link to nowhere, is an error. Nothing is fetched from the network.
docs: install
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html -d build/doctrees docs build/site
	@echo build/site/index.html

# All cores, within an hour, into benchmarks/results; with QUICK=1 within five minutes, into build/bench-quick.
bench: install
	$(BIN)/python -m benchmarks compare $(if $(QUICK),--quick)

clean:
	rm -rf .venv .venv-vllm build demo *.egg-info
