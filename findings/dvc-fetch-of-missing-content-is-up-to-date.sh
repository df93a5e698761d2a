#!/usr/bin/env bash
# dvc 3.67.1, Python 3.11: `dvc fetch` of content that neither the cache nor the remote has ends with "Everything is up
# to date." and exit code 0; only a warning names the hashes. `dvc pull` of the same outputs ends with exit code 1. A
# script or a CI job that fetches with `dvc fetch && …` goes on without its data.
#
# Output, in a pipeline whose outputs were never pushed and whose cache is gone:
#   fetch: exit code 0, Everything is up to date.
#   pull: exit code 1
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "dvc==3.67.1"
export DVC_NO_ANALYTICS=1 PATH="$folder/env/bin:$PATH"
mkdir project remote
cd project
git init --quiet .
dvc init --quiet
dvc remote add --quiet --default store "$folder/remote"
cat > dvc.yaml <<'YAML'
stages:
  collect:
    cmd: echo pictures > raw.txt
    outs: [raw.txt]
YAML
dvc repro --quiet
rm -rf .dvc/cache raw.txt
code=0
last=$(dvc fetch 2> "$folder/log" | tail -n 1) || code=$?
pulled=0
dvc pull > /dev/null 2>> "$folder/log" || pulled=$?
output="fetch: exit code $code, $last
pull: exit code $pulled"
printf '%s\n' "$output"
expected='fetch: exit code 0, Everything is up to date.
pull: exit code 1'
[[ $output == "$expected" ]] && grep -q "neither locally nor on remote" "$folder/log" || { echo "the behaviour has changed"; exit 1; }
