"""An XGBoost classifier, from fit() to an answer.

pip install xgboost scikit-learn onnxmltools       (xgboost-cpu is the same without GPUs, and much smaller)
clockwork up                                   (in another terminal)
python examples/models/from_xgboost.py
"""

from pathlib import Path

import numpy as np
import xgboost
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer

from clockwork import Client

features, kinds = load_breast_cancer(return_X_y=True)
features = features.astype(np.float32)
model = xgboost.XGBClassifier(n_estimators=50, random_state=7).fit(features, kinds)

file = Path("cancer.onnx")
onnx_model = convert_xgboost(
    model,
    # None allows any number of rows
    initial_types=[("features", FloatTensorType([None, features.shape[1]]))],
)
file.write_bytes(onnx_model.SerializeToString())

with Client() as client:
    info = client.register("cancer-xgboost", file, slo=0.1)
    answer = client.infer("cancer-xgboost", {"features": features[:20]})
np.testing.assert_array_equal(answer["label"], model.predict(features[:20]))
np.testing.assert_allclose(answer["probabilities"], model.predict_proba(features[:20]), atol=1e-5)
print(f"{info.reference}: 20 answers like XGBoost's; batches of up to {info.batch_max}")
