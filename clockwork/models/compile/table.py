"""Make a kernel read weight addresses and true sizes from the program's table, not from parameters.

The parameters of a launch are then equal for every model and request, so that launches can be recorded once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from clockwork.models.compile.variant import KernelSource

ENTRY_SUFFIX = "_entry"
"""Suffix of the name of a parameter that points to the table entry with the original parameter's value."""


def through_table(kernel: KernelSource, weights: Collection[int]) -> KernelSource:
    """Return the kernel with these parameters and every size replaced by pointers to table entries."""
    positions = {*weights, *range(kernel.arguments, kernel.arguments + kernel.sizes)}
    head = re.search(rf"\b{re.escape(kernel.name)}\(([^()]*)\) ?\{{\n?", kernel.source)
    assert head is not None, kernel.source
    given = [parameter.strip() for parameter in head[1].split(",")]
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
    """Return the type and the name of a C parameter."""
    found = re.fullmatch(r"(.*?[\s*])(\w+)", parameter, re.DOTALL)
    assert found is not None, parameter
    return found[1].strip(), found[2]
