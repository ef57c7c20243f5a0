#!/usr/bin/env bash
# Puts into .gpu/ what run.sh needs on a machine that reaches no network: wheels of the packages that such a machine
# (Python 3.12, torch 2.11 and its usual company) lacks, CIFAR-10 as JPEG files and the public ResNet-20.
# Run it where PyPI can be reached; BENCH_SHARED names the folder of data and weights.
set -euo pipefail
cd "$(dirname "$0")/../.."
shared="${BENCH_SHARED:-$PWD/../shared}"
mkdir -p .gpu/wheels
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  -d .gpu/wheels -r tests/gpu/wheels.txt
cp "$shared/datasets/cifar10-jpeg.tar.xz" "$shared/priors/resnet20_cifar10.safetensors" .gpu/
du -sh .gpu
