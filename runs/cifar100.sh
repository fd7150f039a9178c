#!/bin/sh
# SDT-2-512 on cifar100 as published, with three seeds: runs/cifar100.sh FOLDER [key=value ...]
# FOLDER holds torchvision's files. The same command continues where it stopped.
set -eu
folder=$1
shift
spikedriven train cifar100 --data "$folder" --seeds 0,1,2 "$@"
