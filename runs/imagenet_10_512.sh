#!/bin/sh
# SDT-10-512 on ImageNet-1K as published: runs/imagenet_10_512.sh FOLDER [key=value ...]
# FOLDER holds train/CLASS and val/CLASS. Eight GPUs: add trainer.devices=8.
# The same command continues a run that stopped.
set -eu
folder=$1
shift
run=runs/imagenet_10_512
if [ ! -d "$run" ]; then
    spikedriven train imagenet_10_512 --data "$folder" --run "$run" "$@"
elif [ ! -e "$run/metrics.json" ]; then
    spikedriven train --resume "$run" --data "$folder"
fi
spikedriven eval "$run" --data "$folder"
