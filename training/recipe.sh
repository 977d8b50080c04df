#!/usr/bin/env bash
# Make klein-mini from nothing. Run it from the project's root, with what docs/training.md lists installed.
# Every step resumes; kill it and start it again as you like. Budgets of text encoder and autoencoder are for two CPU
# cores, far more than a GPU takes; the others for one H200.
set -euo pipefail
work=${1:?"usage: training/recipe.sh FOLDER"}
export PYTHONPATH=src:.

python -m training.data --work "$work"
python -m training.art --work "$work"
python -m training.synonyms --work "$work"
python -m training.tokenizer --work "$work"
python -m training.text --work "$work" --minutes 15
python -m training.autoencoder canvas --work "$work" --minutes 60
python -m training.pool --work "$work" --families 9000
python -m training.flow --work "$work" --minutes 15
python -m training.distill --work "$work" --minutes 4
python -m training.autoencoder full --work "$work" --minutes 6
python -m training.export --work "$work" --to src/openklein/weights/klein_mini
python -m training.judge --work "$work" --minutes 1
python -m training.evaluate --work "$work" --to docs/klein-mini
python -m training.showcase --to docs/klein-mini
