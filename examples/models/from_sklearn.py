"""A scikit-learn pipeline, from fit() to an answer.

pip install scikit-learn skl2onnx
clockwork up                                   (in another terminal)
python examples/models/from_sklearn.py
"""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clockwork import Client

features, kinds = load_wine(return_X_y=True)
features = features.astype(np.float32)
model = make_pipeline(StandardScaler(), RandomForestClassifier(50, random_state=7)).fit(features, kinds)

file = Path("wine.onnx")
onnx_model = to_onnx(
    model,
    features[:1],  # float32; otherwise the model would take float64
    options={
        "zipmap": False
    },  # probabilities as a tensor, instead of a list of dictionaries, which cannot be served
)
file.write_bytes(onnx_model.SerializeToString())

with Client() as client:
    info = client.register("wine", file, slo=0.1)
    answer = client.infer("wine", {"X": features[:20]})
np.testing.assert_array_equal(answer["label"], model.predict(features[:20]))
np.testing.assert_allclose(answer["probabilities"], model.predict_proba(features[:20]), atol=1e-5)
print(f"{info.reference}: 20 answers like scikit-learn's; batches of up to {info.batch_max}")
