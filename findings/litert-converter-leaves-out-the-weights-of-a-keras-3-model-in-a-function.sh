#!/usr/bin/env bash
# tensorflow 2.21.0, keras 3.15.1, Python 3.11: a tf.function calls a Keras 3 model, and
# tf.lite.TFLiteConverter.from_concrete_functions gets it and the model, as the object that holds the variables. The
# conversion succeeds without a warning, but the file has no weights. It has uninitialised variables instead.
# from_keras_model writes them, and so does from_concrete_functions after convert_variables_to_constants_v2.
#
# Output, the bytes of each file and whether the kernel is in it (the kernel has 4000 bytes):
#   function and model: fewer than 4000 bytes, without the kernel
#   model: more than 4000 bytes, with the kernel
#   frozen function: more than 4000 bytes, with the kernel
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "keras==3.15.1" "tensorflow==2.21.0"
cat > weights.py <<'PY'
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

values = keras.Input((10,), name="values")
model = keras.Model(values, keras.layers.Dense(100)(values))
kernel = np.arange(1000, dtype=np.float32).reshape(10, 100)
model.set_weights([kernel, np.zeros(100, np.float32)])
specification = tf.TensorSpec((1, 10), tf.float32, name="values")
function = tf.function(lambda batch: model(batch), [specification]).get_concrete_function()
converter = tf.lite.TFLiteConverter
files = {
    "function and model": converter.from_concrete_functions([function], model).convert(),
    "model": converter.from_keras_model(model).convert(),
    "frozen function": converter.from_concrete_functions([convert_variables_to_constants_v2(function)]).convert(),
}
for name, content in files.items():
    # LiteRT has the kernel of a dense layer by outputs.
    has_kernel = any(layout.tobytes() in content for layout in (kernel, kernel.T.copy()))
    size = "more" if len(content) > kernel.nbytes else "fewer"
    print(f"{name}: {size} than {kernel.nbytes} bytes, {'with' if has_kernel else 'without'} the kernel", flush=True)
PY
TF_CPP_MIN_LOG_LEVEL=3 env/bin/python weights.py 2> errors | grep kernel | tee output
diff output - <<'TEXT'
function and model: fewer than 4000 bytes, without the kernel
model: more than 4000 bytes, with the kernel
frozen function: more than 4000 bytes, with the kernel
TEXT
