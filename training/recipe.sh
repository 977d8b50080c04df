#!/usr/bin/env bash
# Make klein-mini from nothing: two and three quarter hours on two cores. Run it from the project's root, with the
# `train` extra installed and npm at hand. Every step resumes; kill it and start it again as you like.
set -euo pipefail
work=${1:?"usage: training/recipe.sh FOLDER"}
export PYTHONPATH=src:.

python -m training.data --work "$work"
python -m training.tokenizer --work "$work"
python -m training.text --work "$work" --minutes 3
python -m training.autoencoder canvas --work "$work" --minutes 15
python -m training.pool --work "$work" --families 5000
python -m training.flow --work "$work" --minutes 100
python -m training.distill --work "$work" --minutes 15
python -m training.autoencoder full --work "$work" --minutes 6
python -m training.export --work "$work" --to src/openklein/weights/klein_mini
python -m training.evaluate --work "$work" --to docs/klein-mini
