#!/bin/sh
# Training steps beside SpikingJelly 2 and the released code, as in the README, on cores that do
# nothing else: runs/train_speed.sh CODE
# CODE is a checkout of the released code; benchmarks/contenders.py says how .sj2 and .released,
# the environments of the two, are made.
set -eu
python benchmarks/train.py --threads 2 --rounds 9 --epochs 12 --rival spikingjelly --rival official \
    --official-path "$1" --spikingjelly-python .sj2/bin/python \
    --official-python .released/bin/python
