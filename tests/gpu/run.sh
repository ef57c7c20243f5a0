#!/usr/bin/env bash
# tests/gpu/run.sh OUT SECONDS [PART ...]: all that a GPU is worth to this project in so many seconds (12 minutes do; more
# is better), or the parts that are named: tests, times, cells.
#
# Tests that say CUDA, times of steps, then cells of the grid `gpu_row`, each bounded in time, the most valuable first; OUT
# gets log.txt, figures.json, a page of them (gpu.md), records.tar and, of backbones and checkpoints, what fits into
# checkpoints.tar.*. Needs no network: what a machine with torch lacks comes from .gpu/, which pack.sh fills. Without a
# GPU it does all of it in miniature, on the CPU.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd) seconds=$2
cd "$(dirname "$0")/../.."
began=$SECONDS
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G '.gpu/wheels/*.whl' > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .gpu/wheels/*.whl
fi
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1
python3 -m tests.gpu.session "$out" $((seconds - SECONDS + began)) "${@:3}" 2>&1 | tee "$out/log.txt"
