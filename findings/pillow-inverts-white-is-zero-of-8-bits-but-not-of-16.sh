#!/usr/bin/env bash
# Pillow 13.0.0, tifffile 2026.3.3, numpy 2.4.6, Python 3.11: a grey TIFF may say that 0 is white (PhotometricInterpretation
# 0, WhiteIsZero), as scanners do. Pillow inverts such an image if it has 8 bits, so that 0 is black as everywhere else.
# With 16 bits it leaves the pixels as they are stored: white paper opens as black, without a warning. Code that opens
# both gets a photograph from one and its negative from the other.
#
# Output, the value in the opened image of a stored 0, which is white in both files:
#   8 bits: 255
#   16 bits: 0
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "pillow==13.0.0" "tifffile==2026.3.3" "numpy==2.4.6"
cat > white.py <<'PY'
import numpy as np
import tifffile
from PIL import Image

for bits in (8, 16):
    stored = np.zeros((4, 4), f"uint{bits}")
    tifffile.imwrite("white.tif", stored, photometric="miniswhite")
    with Image.open("white.tif") as image:
        assert image.tag_v2[262] == 0
        print(f"{bits} bits: {image.getpixel((0, 0))}")
PY
env/bin/python white.py | tee output
diff output - <<'TEXT'
8 bits: 255
16 bits: 0
TEXT
