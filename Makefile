# Two commands matter: `make demo` and `make test`. Each sets up all that it needs, into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV_VERSION := 0.13.9
COMPILE := $(BIN)/uv pip compile pyproject.toml --extra cpu --extra dev --override requirements/overrides.txt \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command "make requirements"

.PHONY: venv demo demo-s3 test chaos check bench bench-quick requirements clean

venv: .venv/ready  ## set up .venv and nothing else

.venv/ready: requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install -q --compile-bytecode --no-deps --require-hashes -r requirements/cpu.txt
	$(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	touch .venv/ready

demo: venv  ## label real digits with a real (small) Llama 4; again: resumes, with nothing left to do
	$(BIN)/python -m jobs.demo

demo-s3: venv  ## the same with input and output on a real S3 server on this machine
	$(BIN)/python -m jobs.demo --s3

test: venv  ## all tests: unit, Ray, S3 servers, vLLM on the CPU
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "not chaos" tests/e2e tests/chaos tests/ray tests/unit

chaos: venv  ## at least 100 seeded faults: processes, nodes and storage, at random and at each step of a commit; long tests
	$(BIN)/python -m pytest tests/chaos tests/ray/test_storage_faults.py
	$(BIN)/python -m pytest -m chaos tests/e2e tests/ray --ignore=tests/ray/test_storage_faults.py

check: venv  ## what must hold of the code itself: lint, format, types, import direction
	$(BIN)/ruff check pipeline cluster jobs tests
	$(BIN)/ruff format --check pipeline cluster jobs tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv  ## Herd against raw vLLM, Ray Data and ray.data.llm, and how cost grows; hours; writes tests/bench/reports/
	$(BIN)/python -m tests.bench

bench-quick: venv  ## the same, small and in minutes; fails where a ratio is below its floor
	$(BIN)/python -m tests.bench --quick

requirements: venv  ## compile requirements/cpu.txt anew from pyproject.toml
	$(COMPILE) -q --upgrade -o requirements/cpu.txt

clean:  ## what runs and checks left behind, but not .venv
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
