"""A LightGBM booster, from fit() to an answer.

pip install lightgbm scikit-learn onnxmltools
clockwork up                                   (in another terminal)
python examples/models/from_lightgbm.py
"""

from pathlib import Path

import lightgbm
import numpy as np
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer

from clockwork import Client

features, kinds = load_breast_cancer(return_X_y=True)
features = features.astype(np.float32)
model = lightgbm.LGBMClassifier(n_estimators=50, random_state=7, verbose=-1).fit(features, kinds)

file = Path("cancer.onnx")
onnx_model = convert_lightgbm(
    model.booster_,
    # None allows any number of rows
    initial_types=[("features", FloatTensorType([None, features.shape[1]]))],
    zipmap=False,  # probabilities as a tensor, instead of a list of dictionaries
)
file.write_bytes(onnx_model.SerializeToString())

with Client() as client:
    info = client.register("cancer", file, slo=0.1)
    answer = client.infer("cancer", {"features": features[:20]})
np.testing.assert_array_equal(answer["label"], model.predict(features[:20]))
np.testing.assert_allclose(answer["probabilities"], model.predict_proba(features[:20]), atol=1e-5)
print(f"{info.reference}: 20 answers like LightGBM's; batches of up to {info.batch_max}")
