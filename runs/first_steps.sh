#!/bin/sh
# The first losses beside the released code's, as in the README: runs/first_steps.sh CODE FOLDER
# CODE is a checkout of the released code, FOLDER holds CIFAR-10 as torchvision has it;
# benchmarks/contenders.py says how .released is made.
set -eu
.released/bin/python benchmarks/first_steps.py --official-path "$1" --data "$2" --batch 32 \
    --neighbours 2
