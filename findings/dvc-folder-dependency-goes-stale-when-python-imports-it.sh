#!/usr/bin/env bash
# dvc 3.67.1, Python 3.11: a stage whose dependency is a folder with a Python package becomes stale as soon as any
# program imports that package, although no source file changed. CPython writes __pycache__ into the folder, and DVC
# hashes the folder with it; DVC's built-in ignore list has .git and .hg, but not __pycache__. The stage itself imports
# the package while it runs, so `dvc repro` records one state of the cache and the next import of another module
# changes it. A line `__pycache__/` in .dvcignore ends this, and the recorded hash is then that of the sources alone.
#
# Output of `dvc status`, before the import, after it, and with the line in .dvcignore:
#   Data and pipelines are up to date.
#   build:
#   	changed deps:
#   		modified:           pkg
#   Data and pipelines are up to date.
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "dvc==3.67.1"
export DVC_NO_ANALYTICS=1 PATH="$folder/env/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX
mkdir -p project/pkg
cd project
git init --quiet .
dvc init --quiet
printf 'VALUE = 1\n' > pkg/lib.py
cat > dvc.yaml <<'YAML'
stages:
  build:
    cmd: echo built > out.txt
    deps: [pkg]
    outs: [out.txt]
YAML
dvc repro --quiet
before=$(dvc status)
python -c 'import pkg.lib'
after=$(dvc status)
printf '__pycache__/\n' >> .dvcignore
ignored=$(dvc status)
printf '%s\n' "$before" "$after" "$ignored"
fresh='Data and pipelines are up to date.'
[[ $before == "$fresh" && $after == *modified:*pkg* && $ignored == "$fresh" ]] || { echo "the behaviour has changed"; exit 1; }
