#!/usr/bin/env bash
# dvc 3.67.1, Python 3.11: `dvc repro --dry`, which only prints what would run, fails in a fresh clone. For the second
# stage of a chain it hashes a dependency that the first stage has not made, because nothing runs: exit code 255 and
# "[Errno 2] No such file or directory". With --force as well, which hashes nothing, it prints both stages.
#
# Output, of a chain of two stages that never ran:
#   repro --dry: exit code 255, stages shown: collect
#   1   (lines with "Errno 2")
#   repro --dry --force: exit code 0, stages shown: collect clean
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "dvc==3.67.1"
export DVC_NO_ANALYTICS=1 PATH="$folder/env/bin:$PATH"
mkdir project
cd project
git init --quiet .
dvc init --quiet
cat > dvc.yaml <<'YAML'
stages:
  collect:
    cmd: echo pictures > raw.txt
    outs: [raw.txt]
  clean:
    cmd: sort raw.txt > clean.txt
    deps: [raw.txt]
    outs: [clean.txt]
YAML
show() {
  local code=0
  dvc "$@" > "$folder/out" 2> "$folder/log" || code=$?
  echo "$*: exit code $code, stages shown: $(sed -n "s/^Running stage '\(.*\)':/\1/p" "$folder/out" | paste -sd' ')"
}
output=$(show repro --dry; grep -c 'Errno 2' "$folder/log"; show repro --dry --force)
printf '%s\n' "$output"
expected='repro --dry: exit code 255, stages shown: collect
1
repro --dry --force: exit code 0, stages shown: collect clean'
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
