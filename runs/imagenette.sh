#!/bin/sh
# The Imagenette figure in the README, 100 minutes of one core: runs/imagenette.sh FOLDER
# FOLDER holds train/CLASS and val/CLASS. The same command continues where it stopped.
set -eu
python benchmarks/accuracy.py imagenette --data "$1" --run runs/imagenette
