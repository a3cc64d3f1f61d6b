.PHONY: help setup fmt lint type quick test bench train

help:
	@echo "setup  install what tests need     fmt    format            lint   style"
	@echo "type   types                       quick  the tests of a coffee break"
	@echo "test   everything that CI runs     bench  kernels on this machine"
	@echo "train  the embedded task"
setup:
	bash scripts/setup.sh test
fmt: setup
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .
lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/codespell
type: setup
	.venv/bin/mypy
quick: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow"
test:
	bash scripts/run_tests.sh
bench: setup
	.venv/bin/python -m pytest -q bench
train:
	bash scripts/run_ttrl.sh
