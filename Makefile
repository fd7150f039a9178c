# Everything runs in .venv, made on first use. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format clean

.venv/pip: # a fresh environment
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d is too old; 3.11 or newer is needed: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@touch $@

.venv/train: .venv/pip pyproject.toml
	@echo "Installing spikedriven and PyTorch into .venv (about 3 minutes and 5 GB the first time) ..."
	@$(BIN)/python -m pip install --quiet -e ".[train]"
	@touch $@

.venv/dev: .venv/pip pyproject.toml
	@echo "Installing spikedriven with every extra into .venv (about 3 minutes and 5 GB the first time) ..."
	@$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ .venv/train

demo: .venv/train ## train on real handwriting, evaluate, say what to try next
	@if [ -d runs/demo ]; then echo "Removing the last demo in runs/demo"; rm -rf runs/demo; fi
	@$(BIN)/spikedriven train digits --run runs/demo

test: lint ## everything that CI runs
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist
