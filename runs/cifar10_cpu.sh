#!/bin/sh
# The CIFAR-10 figure in the README, some two hours of one core: runs/cifar10_cpu.sh FOLDER
# FOLDER holds torchvision's files. The same command continues where it stopped.
set -eu
python benchmarks/accuracy.py cifar10_cpu --data "$1" --run runs/cifar10_cpu
