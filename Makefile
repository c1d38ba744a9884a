.PHONY: setup check test demo bench docs lock lock-check hooks

UV := .venv/bin/uv
COMPILE := $(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.10 \
	--generate-hashes --no-annotate --no-header --no-emit-index-url --quiet

setup:  ## make or update .venv
	./setup.sh

check:  ## what the CI runs: ruff, pyright, the import rule and the tests
	./run_tests.sh

test: setup  ## only the tests; make test ARGS="tests/test_files.py -k atomic"
	./run_tests.sh tests $(ARGS)

demo:  ## the whole chain on sample data
	./run_all.sh --demo

bench: setup  ## measure speed and memory
	.venv/bin/python -m bench $(ARGS)

docs: setup  ## build the HTML pages into site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet
	@echo "open site/index.html"

lock: setup  ## renew requirements.lock after a change of dependencies; make lock ARGS=--upgrade
	$(COMPILE) --output-file requirements.lock $(ARGS)

lock-check: setup  ## does the lock satisfy pyproject.toml? (needs no network)
	.venv/bin/python -m pytest -q tests/test_lock.py

hooks: setup  ## check each commit with the project's own tools
	.venv/bin/pre-commit install
