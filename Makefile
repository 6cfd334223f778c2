# `make search` and `make test` do everything on a machine that has Python with venv, git and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install search test lint format
install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# The demo, from made videos to a model that was tested once. A second call goes on with the same search.
search: install
	$(BIN)/python -m dreamprvr_ray.data.demo --out demo/source
	$(BIN)/python -m dreamprvr_ray.convert --source demo/source --collection demo --out demo/shards
	$(BIN)/python -m dreamprvr_ray.tune --space search_spaces/demo.yaml $(if $(wildcard demo/search),--resume) $(SEARCH_FLAGS)

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
