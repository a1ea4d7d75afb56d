"""An ONNX model in 8-bit integers, by calibration, and what it costs in accuracy.

pip install scikit-learn
clockwork up                                   (in another terminal)
python examples/models/quantized.py
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.datasets import load_digits

import clockwork
from clockwork import Client

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)


class Calibration(CalibrationDataReader):
    """Real inputs, from which the ranges of activations are measured."""

    def __init__(self) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.split(images[:512], 16))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


source = Path(clockwork.__file__).parent / "models/data/digits.onnx"
quant_pre_process(
    source, "digits-prepared.onnx", skip_symbolic_shape=True
)  # symbolic shapes would need sympy
# Static: ranges are constants. quantize_dynamic() takes them from each batch, so that rows would change each
# other's answers, and the model would be served one row at a time.
quantize_static(
    "digits-prepared.onnx",
    "digits-int8.onnx",
    Calibration(),
    quant_format=QuantFormat.QDQ,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
    per_channel=True,
)

with Client() as client:
    exact = client.register("digits-float", source, slo=0.1)
    small = client.register("digits-int8", "digits-int8.onnx", slo=0.1)
    for info in (exact, small):
        scores = np.concatenate([client.infer(info.name, rows) for rows in np.array_split(images[512:], 100)])
        right = (scores.argmax(1) == digits[512:]).mean()
        print(
            f"{info.reference}: {right:.1%} right, {info.weights_bytes / 1024:.0f} KiB of weights, "
            f"batches of up to {info.batch_max}"
        )
