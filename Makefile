# make demo   restore the photographs in assets/demo with the tiny model
# make test   run the tests
# Both set up .venv first, `make demo` with no more than restoring needs; PYTHON=python3.12 chooses another interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/python scripts/restore.py assets/demo --output outputs/demo --model tiny
	$(BIN)/python scripts/before_after.py assets/demo outputs/demo outputs/before_after.png

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/made:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: pyproject.toml | .venv/made
	test -e .venv/dev || $(BIN)/python -m pip install --editable .
	touch $@

.venv/dev: pyproject.toml | .venv/made
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv outputs
