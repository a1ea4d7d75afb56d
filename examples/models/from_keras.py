"""A Keras model, from fit() to an answer.

pip install keras torch onnxscript             (or tensorflow and tf2onnx, with KERAS_BACKEND=tensorflow)
clockwork up                                   (in another terminal)
KERAS_BACKEND=torch python examples/models/from_keras.py
"""

from pathlib import Path

import keras
import numpy as np

from clockwork import Client

keras.utils.set_random_seed(7)
model = keras.Sequential(
    [
        keras.layers.Input((8, 8, 1), name="image"),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax", name="scores"),
    ]
)
images = np.random.default_rng(7).random((20, 8, 8, 1), np.float32)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
model.fit(images, np.arange(20) % 10, verbose=0)

file = Path("keras.onnx")
model.export(file, format="onnx", verbose=False)

with Client() as client:
    info = client.register("keras", file, slo=0.1)
    scores = client.infer(
        "keras", images
    )  # an array for the only input, whatever its name; an array is returned
np.testing.assert_allclose(scores, model.predict(images, verbose=0), atol=1e-5)
print(f"{info.reference}: 20 answers like Keras's; batches of up to {info.batch_max}")
