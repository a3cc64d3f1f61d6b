#!/usr/bin/env bash
# Sets up (once) and trains.
#   bash scripts/run_ttrl.sh                                   the embedded task, on any machine
#   bash scripts/run_ttrl.sh --set seed=1 --run-dir runs/one   the same with other settings
#   bash scripts/run_ttrl.sh aime24 --model qwen2.5-math-7b    a benchmark of the paper
# Further arguments go to `ttrl train`; see `.venv/bin/ttrl train --help`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$here/scripts/setup.sh"
case "${1:-}" in
    "" | -*) set -- tiny-arithmetic "$@" ;;
esac
exec "$here/.venv/bin/ttrl" train "$@"
