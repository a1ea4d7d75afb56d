"""Has a kernel read the addresses of its weights, and true sizes, from the program's table instead of its parameters.

A launch's parameters are then the same for every model and request, so that launches can be recorded once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from clockwork.models.compile.variant import Kernel

ENTRY_SUFFIX = "_entry"
"""Behind a parameter's name: the parameter in its place, which points to the entry of the table with its value."""


def through_table(kernel: Kernel, weights: Collection[int]) -> Kernel:
    """The kernel with pointers to entries of the table in the place of these parameters and of every size."""
    positions = {*weights, *range(kernel.arguments, kernel.arguments + kernel.sizes)}
    head = re.search(rf"\b{re.escape(kernel.name)}\(([^()]*)\) ?\{{\n?", kernel.source)
    assert head is not None, kernel.source
    given = [one.strip() for one in head[1].split(",")]
    assert len(given) == kernel.arguments + kernel.sizes, f"parameters of {kernel.name}: {given}"
    parameters, first = [], []
    for position, parameter in enumerate(given):
        if position not in positions:
            parameters.append(parameter)
            continue
        kind, name = _divided(parameter)
        parameters.append(f"const unsigned long long* {name}{ENTRY_SUFFIX}")
        value = re.sub(r"\b(restrict|__restrict__)\b", "", kind).strip()
        first.append(f"  {parameter} = ({value})*{name}{ENTRY_SUFFIX};\n")
    source = (
        kernel.source[: head.start(1)]
        + ", ".join(parameters)
        + kernel.source[head.end(1) : head.end()]
        + "".join(first)
        + kernel.source[head.end() :]
    )
    return dataclasses.replace(kernel, source=source, arguments=kernel.arguments + kernel.sizes, sizes=0)


def _divided(parameter: str) -> tuple[str, str]:
    """The type and the name of a parameter."""
    found = re.fullmatch(r"(.*?[\s*])(\w+)", parameter, re.DOTALL)
    assert found is not None, parameter
    return found[1].strip(), found[2]
