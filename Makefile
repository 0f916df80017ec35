# make demo   restore the photographs in assets/demo with the tiny model
# make test   run the tests
# Both set up .venv first; PYTHON=python3.12 chooses another interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python scripts/restore.py assets/demo --output outputs/demo --model tiny
	$(BIN)/python scripts/before_after.py assets/demo outputs/demo outputs/before_after.png

test: .venv/installed
	$(BIN)/python -m pytest -q

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv outputs
