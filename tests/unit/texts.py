"""Small tokenizers of the library `tokenizers`, trained here, and a sentence encoder for their tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed ([text])")

WIDTH = 8
CORPUS = [
    "the quick brown fox jumps over the lazy dog because it is late",
    "every request has a deadline and every answer comes in time",
    "crème brûlée in a naïve café",
    "数据 处理 系统 привет мир",
] * 5


def word_pieces(**normaliser: Any) -> Any:
    """A tokenizer like BERT's, whose vocabulary has every character of its corpus. normaliser: for
    BertNormalizer."""
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(**normaliser)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=specials, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def byte_pairs(prefix_space: bool = False, is_roberta: bool = False) -> Any:
    """A tokenizer like GPT-2's, or RoBERTa's."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    specials = ["<s>", "<pad>", "</s>", "<unk>"] if is_roberta else ["<|endoftext|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(CORPUS, trainer)
    if is_roberta:
        made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        made.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    return made


def save(tokenizer: Any, directory: Path, **config: Any) -> Path:
    """The folder of a tokenizer, as Hugging Face has it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def encoder(vocabulary: int, length: int | str = "tokens", dtype: int = TensorProto.INT64) -> onnx.ModelProto:
    """Token ids and a mask to `embedding` (N, WIDTH): the mean of the tokens' vectors, of length 1."""
    vectors = np.random.default_rng(5).standard_normal((vocabulary, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["found", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens_axis"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["embedding"], axis=1, p=2),
    ]
    constants = [
        numpy_helper.from_array(vectors, "vectors"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "tokens_axis"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, dtype, ["batch", length])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def embedding_of(tokenizer: Any, text: str) -> np.ndarray:
    """Return encoder()'s answer to a text, by `tokenizers` and NumPy."""
    vectors = numpy_helper.to_array(encoder(tokenizer.get_vocab_size()).graph.initializer[0])
    whole = vectors[tokenizer.encode(text).ids].sum(0)
    found: np.ndarray = whole / np.linalg.norm(whole)
    return found
