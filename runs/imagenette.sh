#!/bin/sh
# The Imagenette figure in the README, within two CPU hours: runs/imagenette.sh FOLDER
# FOLDER holds train/CLASS and val/CLASS. The same command continues where it stopped.
set -eu
python benchmarks/accuracy.py imagenette --data "$1" --run runs/imagenette
