#!/bin/sh
# SDT-8-768 on ImageNet-1K as published: runs/imagenet_8_768.sh FOLDER [key=value ...]
# FOLDER holds train/CLASS and val/CLASS. Eight GPUs: add trainer.devices=8.
# The same command continues a run that stopped.
set -eu
folder=$1
shift
run=runs/imagenet_8_768
if [ ! -d "$run" ]; then
    spikedriven train imagenet_8_768 --data "$folder" --run "$run" "$@"
elif [ ! -e "$run/metrics.json" ]; then
    spikedriven train --resume "$run" --data "$folder"
fi
spikedriven eval "$run" --data "$folder"
# The printed 77.07 % is at 288 pixels.
spikedriven eval "$run" --data "$folder" \
    data.image_size=288 data.crop=0.9 data.interpolation=bilinear
