"""Replace outputs of classifiers that are lists of maps from class to score by tensors of scores, at import.

The operator ZipMap pairs the columns of a tensor with the names of the classes. The output becomes that
tensor, and the names become the model's labels, so that nothing is lost. The option ``zipmap=False`` of
scikit-learn's converter has the same effect; CatBoost's export has no such option.
"""

from __future__ import annotations

import json

import onnx
from onnx import TensorProto, helper

from clockwork.formats.interface import LABELS_KEY

_DOMAIN = "ai.onnx.ml"
_OPSET = 13  # Version of the standard operators for a model that uses none so far


def make_tensors(model: onnx.ModelProto) -> bool:
    """Replace each output of a ZipMap by the input of the ZipMap, under the output's name. Return whether
    there was any.

    Other sequences and maps stay. The output is (rows, classes) float32, with an open number of rows.
    """
    graph = model.graph
    makers = {
        node.output[0]: node for node in graph.node if node.op_type == "ZipMap" and node.domain == _DOMAIN
    }
    read = {name for node in graph.node for name in node.input}
    labels: list[list[str]] = []
    for output in graph.output:
        node = makers.get(output.name)
        if node is None or output.name in read:
            continue
        labels.append(_classes(node))
        scores, name = node.input[0], output.name
        node.CopyFrom(helper.make_node("Identity", [scores], [name], name=node.name))
        output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, len(labels[-1])]))
    if not labels:
        return False
    if all(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", _OPSET))
    named = {entry.key for entry in model.metadata_props}
    if len(labels) == 1 and LABELS_KEY not in named:
        model.metadata_props.add(key=LABELS_KEY, value=json.dumps(labels[0]))
    return True


def _classes(zip_map: onnx.NodeProto) -> list[str]:
    """Return the names of a ZipMap's classes, in the order of the columns of its input."""
    for attribute in zip_map.attribute:
        if attribute.name == "classlabels_int64s" and attribute.ints:
            return [str(number) for number in attribute.ints]
        if attribute.name == "classlabels_strings" and attribute.strings:
            return [text.decode(errors="replace") for text in attribute.strings]
    return []
