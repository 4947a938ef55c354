# make demo: a picture from a prompt, from nothing but Python 3.11 and a C++ compiler.
# make test: everything that is checked on a CPU without a network.
PYTHON ?= python3
USER_VENV := .venv
DEV_VENV := .venv-dev
DEV := $(DEV_VENV)/bin

.PHONY: demo test lint slow bench clean

demo: $(USER_VENV)/installed
	$(USER_VENV)/bin/sdfast generate "a small red circle on a blue background" --seed 0 --out demo.png

test: $(DEV_VENV)/installed
	$(DEV)/pytest -m "not slow and not gpu"

slow: $(DEV_VENV)/installed
	$(DEV)/pytest -m slow

lint: $(DEV_VENV)/installed
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy
	$(DEV)/lint-imports

bench: $(DEV_VENV)/installed
	$(DEV)/python benchmarks/diffusers_peer.py
	$(DEV)/python benchmarks/loop.py
	$(DEV)/python benchmarks/spinning.py
	$(DEV)/python benchmarks/scheduler_peer.py

NATIVE := $(wildcard sdfast/native/*) CMakeLists.txt pyproject.toml

$(USER_VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(USER_VENV)
	$(USER_VENV)/bin/pip install --quiet --disable-pip-version-check .
	touch $@

$(DEV_VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(DEV_VENV)
	$(DEV)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(USER_VENV) $(DEV_VENV) build dist
