#!/usr/bin/env bash
# keras 3.15.1, matplotlib 3.11.2, Python 3.11: `import keras` imports matplotlib.pyplot where it is installed, although
# nothing is drawn. It expects ImportError only. A notebook names its backend in MPLBACKEND, and every process that it
# starts inherits the variable. In an environment without the package matplotlib-inline, Matplotlib refuses that backend
# with ValueError, so a training that a notebook starts there ends at `import keras`. Without Matplotlib, or with
# MPLBACKEND=agg, the same import works.
#
# Output, for each value of MPLBACKEND:
#   agg: keras is imported, and pyplot
#   module://matplotlib_inline.backend_inline: ValueError
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "keras==3.15.1" "matplotlib==3.11.2" "numpy==2.4.6" "scipy==1.17.1" "jax[cpu]==0.10.2"
cat > import.py <<'PY'
import os
import sys

try:
    import keras

    found = f"keras is imported, {'and' if 'matplotlib.pyplot' in sys.modules else 'without'} pyplot"
except ValueError as error:
    found = type(error).__name__
print(f"{os.environ['MPLBACKEND']}: {found}")
PY
for backend in agg module://matplotlib_inline.backend_inline; do
  KERAS_BACKEND=numpy MPLBACKEND=$backend env/bin/python import.py 2>> errors
done | tee output
diff output - <<'TEXT'
agg: keras is imported, and pyplot
module://matplotlib_inline.backend_inline: ValueError
TEXT
