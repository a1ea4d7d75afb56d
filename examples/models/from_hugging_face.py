"""A model of the transformers library, from the Hub to an answer.

    pip install transformers torch onnxscript
    clockwork up                                   (in another terminal)
    python examples/models/from_hugging_face.py prajjwal1/bert-tiny
    python examples/models/from_hugging_face.py     (a model with random weights, which needs no Hub)

Repositories of the Hub that have an ONNX file need none of this:

    clockwork models add minilm hf://sentence-transformers/all-MiniLM-L6-v2/onnx/model.onnx
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, BertConfig, BertModel

from clockwork import Client

if len(sys.argv) > 1:
    encoder = AutoModel.from_pretrained(sys.argv[1])
else:
    torch.manual_seed(7)
    encoder = BertModel(
        BertConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    )


class Sentences(torch.nn.Module):
    """The mean of a sentence's tokens: a vector for each sentence, instead of one for every token."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return (tokens * mask).sum(1) / mask.sum(1)


model = Sentences(encoder).eval()
ids = torch.randint(1, encoder.config.vocab_size, (2, 16))
rows, length = torch.export.Dim("rows"), torch.export.Dim("length", max=512)
file = Path("encoder.onnx")
torch.onnx.export(
    model,
    (ids, torch.ones_like(ids)),
    file,
    input_names=["input_ids", "attention_mask"],
    output_names=["vector"],
    dynamic_shapes={"input_ids": {0: rows, 1: length}, "attention_mask": {0: rows, 1: length}},
    external_data=False,
)


def sentence(words: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(words).integers(1, encoder.config.vocab_size, (1, words))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


with Client() as client:
    # A length that was never run has no known duration, so its first request would be refused: examples are
    # run now.
    info = client.register("encoder", file, slo=0.5, examples=[sentence(words) for words in (5, 16, 40)])
    for words in (5, 16, 40):
        inputs = sentence(words)
        answer = client.infer("encoder", inputs)
        with torch.no_grad():
            expected = model(*(torch.from_numpy(array) for array in inputs.values())).numpy()
        np.testing.assert_allclose(answer["vector"], expected, atol=1e-4)
print(f"{info.reference}: sentences of 5, 16 and 40 tokens like PyTorch's; batches of up to {info.batch_max}")
