"""Inline the functions of an ONNX model, up to a bound on the number of operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import inliner

from clockwork.config.models import FOLLOWED_MAX
from clockwork.device.operators import DOMAIN
from clockwork.models.compile.sizes import NotProven
from clockwork.models.onnx_import import bodies_of

STANDARD = ("ai.onnx", "com.microsoft", "com.ms", DOMAIN)
"""Prefixes of domains whose operators a runtime implements itself, even if a model has such a function."""


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its functions inlined. Raises NotProven where a runtime runs something else."""
    if not model.functions:
        return model
    functions = {
        (function.domain, function.name, function.overload): function for function in model.functions
    }
    # By function: operators, including those of functions that it calls
    counts: dict[tuple[str, str, str], int] = {}

    def count(nodes: Sequence[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if key in functions and key not in counts:
                counts[key] = FOLLOWED_MAX + 1  # the count of a function that calls itself
                counts[key] = min(count(functions[key].node), FOLLOWED_MAX + 1)
            total += counts.get(key, 1)
            for attribute in node.attribute:
                total += sum(count(body.node) for body in bodies_of(attribute))
        return total

    for function in model.functions:
        if function.domain.startswith(STANDARD) or not function.domain:
            raise NotProven(f"function {function.name!r} has the name of a standard operator")
    try:
        if count(model.graph.node) > FOLLOWED_MAX:
            raise NotProven(f"more than {FOLLOWED_MAX} operators would have to be followed")
        return inliner.inline_local_functions(model)
    except RecursionError:
        raise NotProven("the model's functions are too deep to be followed") from None
    except (RuntimeError, ValueError) as error:
        raise NotProven(f"the model's functions cannot be followed: {error}") from None
