#!/usr/bin/env bash
# bentoml 1.4.39, pillow 13.0.0, Python 3.11: bentoml.SyncHTTPClient sends a Pillow image that was opened from a file,
# but not one that was made, converted or cropped in memory. The client takes the image's open file as the upload
# instead of encoding the image: an opened image has the attribute `fp`, any other image has none. So every picture
# that was preprocessed before the call is refused by the client itself, in an AttributeError that names no parameter.
#
# Output, of an image service with `def size(self, image: PIL.Image.Image)`:
#   opened from a file: 9x6
#   converted to grey: AttributeError: 'Image' object has no attribute 'fp'
#   made in memory: AttributeError: 'Image' object has no attribute 'fp'
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "bentoml==1.4.39" "pillow==13.0.0"
export BENTOML_HOME="$folder/home" BENTOML_DO_NOT_TRACK=True
cat > service.py <<'PY'
import bentoml
from PIL.Image import Image


@bentoml.service
class Pictures:
    @bentoml.api
    def size(self, image: Image) -> str:
        return f"{image.width}x{image.height}"
PY
cat > client.py <<'PY'
import socket
import subprocess
import sys

import bentoml
from PIL import Image

Image.new("RGB", (9, 6)).save("picture.png")
opened = Image.open("picture.png")
pictures = {
    "opened from a file": opened,
    "converted to grey": Image.open("picture.png").convert("L"),
    "made in memory": Image.new("RGB", (9, 6)),
}
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "bentoml", "serve", "service:Pictures", "--host", "127.0.0.1", "--port", str(port)]
with open("server.log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
    try:
        with bentoml.SyncHTTPClient(f"http://127.0.0.1:{port}", server_ready_timeout=120) as client:
            for name, picture in pictures.items():
                try:
                    print(f"{name}: {client.size(image=picture)}")
                except Exception as error:
                    print(f"{name}: {type(error).__name__}: {error}")
    finally:
        server.terminate()
PY
output=$(env/bin/python client.py 2> client.log) || { cat client.log server.log; exit 1; }
printf '%s\n' "$output"
expected="opened from a file: 9x6
converted to grey: AttributeError: 'Image' object has no attribute 'fp'
made in memory: AttributeError: 'Image' object has no attribute 'fp'"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
