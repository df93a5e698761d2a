#!/usr/bin/env bash
# keras 3.15.1, tensorflow 2.21.0, ai-edge-litert 2.3.0, Python 3.11: a Keras model has a list of three outputs of the
# same shape, which are the constants 1, 2 and 3. `model.export(…, format="litert")` keeps their order in the signature
# (output_0, output_1, output_2), but the interpreter's get_output_details() lists them as 2, 1, 3. Code that takes the
# outputs of a LiteRT model by position, as most examples do, exchanges two of them without an error. Only
# get_signature_runner(), or outputs that differ in shape, tell them apart.
#
# Output, the values in each order:
#   keras: 1 2 3
#   details: 2 1 3
#   signature: 1 2 3
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "keras==3.15.1" "tensorflow==2.21.0" "ai-edge-litert==2.3.0"
cat > order.py <<'PY'
import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

image = keras.Input((1,))
constants = [
    keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(value))(image)
    for value in (1.0, 2.0, 3.0)
]
model = keras.Model(image, constants)
model.export("model.tflite", format="litert", verbose=False)
zero = np.zeros((1, 1), np.float32)
interpreter = Interpreter("model.tflite")
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], zero)
interpreter.invoke()
runner = interpreter.get_signature_runner()
named = runner(**{name: zero for name in runner.get_input_details()})
orders = {
    "keras": [np.asarray(output).item() for output in model(zero)],
    "details": [interpreter.get_tensor(output["index"]).item() for output in interpreter.get_output_details()],
    "signature": [named[name].item() for name in sorted(named)],
}
for name, values in orders.items():
    print(f"{name}:", *(f"{value:g}" for value in values))
PY
TF_CPP_MIN_LOG_LEVEL=3 env/bin/python order.py 2> errors | tee output
diff output - <<'TEXT'
keras: 1 2 3
details: 2 1 3
signature: 1 2 3
TEXT
