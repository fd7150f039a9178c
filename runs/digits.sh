#!/bin/sh
# The digits' figure in the README, by its benchmark: three seeds, some four minutes.
set -eu
python benchmarks/digits.py
