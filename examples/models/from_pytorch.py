"""A PyTorch module, from torch.onnx.export to an answer.

pip install torch onnxscript
clockwork up                                   (in another terminal)
python examples/models/from_pytorch.py
"""

from pathlib import Path

import numpy as np
import torch

from clockwork import Client


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, stride=2, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.classify = torch.nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image).flatten(1)).softmax(1)


torch.manual_seed(7)
model = Net().eval()  # without eval(), dropout and batch statistics would change the answers

file = Path("net.onnx")
torch.onnx.export(
    model,
    (torch.rand(2, 3, 64, 64),),
    file,
    input_names=["image"],
    output_names=["scores"],
    # otherwise every batch would have the 2 rows of the example
    dynamic_shapes={"image": {0: torch.export.Dim("rows")}},
    # a single file; above 2 GB the weights are in a second file, which is registered with it
    external_data=False,
)

images = np.random.default_rng(7).random((4, 3, 64, 64), np.float32)
with Client() as client:
    info = client.register("net", file, slo=0.1)
    scores = client.infer("net", {"image": images})["scores"]
with torch.no_grad():
    expected = model(torch.from_numpy(images)).numpy()
np.testing.assert_allclose(scores, expected, atol=1e-5)
print(f"{info.reference}: {len(images)} answers like PyTorch's; batches of up to {info.batch_max}")
