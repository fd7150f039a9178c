#!/bin/sh
# The Fashion-MNIST figure in the README, within an hour on two cores: runs/fashion_mnist.sh FOLDER
# FOLDER holds torchvision's files. The same command continues where it stopped.
set -eu
python benchmarks/accuracy.py fashion_mnist --data "$1" --run runs/fashion_mnist
