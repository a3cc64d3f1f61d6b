.PHONY: setup fmt lint type test train

setup:
	bash scripts/setup.sh test
fmt: setup
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .
lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
type: setup
	.venv/bin/mypy
test:
	bash scripts/run_tests.sh
train:
	bash scripts/run_ttrl.sh
