"""Determine the widths of a kernel's memory accesses from its source."""

from __future__ import annotations

import re

ELEMENT_BYTES = {
    "bool": 1, "_Bool": 1, "char": 1, "signed char": 1, "unsigned char": 1, "short": 2, "unsigned short": 2, "int": 4,
    "unsigned int": 4, "uint": 4, "long": 8, "unsigned long": 8, "long long": 8, "unsigned long long": 8, "float": 4, "double": 8,
    "half": 2, "_Float16": 2, "__fp16": 2, "nv_bfloat16": 2, "__bf16": 2,
}  # fmt: skip
"""Size in bytes of each C type to which kernels have pointers."""

_PARAMETER = re.compile(
    r"(?:const )?([A-Za-z_][\w ]*?)\s*\* ?(?:restrict |__restrict__ )?(data\d+(?:_\d+)?)\b"
)
_CAST = re.compile(r"\*\(\((\w+)\*\)\(")
_VECTOR = re.compile(r"\*\(\((\w+)\*\)\(\(?(data\d+(?:_\d+)?)\b")
# An access to an array of the kernel itself, which is aligned
_OWN_VECTOR = re.compile(r"\*\(\((\w+)\*\)\(\(?buf\d+\b")


def widths_of(source: str) -> tuple[int, ...]:
    """Return the bytes of the widest access (an element or a vector) through each pointer of a kernel."""
    head = re.search(r"\w\(([^()]*\bdata\d[^()]*)\) ?\{", source)
    assert head is not None, source
    parameters = _PARAMETER.findall(head[1])
    base = {name: kind.strip() for kind, name in parameters}
    widths = {name: ELEMENT_BYTES[kind] for name, kind in base.items()}
    vectors = _VECTOR.findall(source)
    understood = len(vectors) + len(_OWN_VECTOR.findall(source))
    assert understood == len(_CAST.findall(source)), (
        f"{source}\na vector access of this kernel is not understood"
    )
    for vector, name in vectors:
        element = base[name].replace(" ", "_")
        count = vector.removeprefix(element)
        assert count.isdigit(), f"{vector} through a pointer to {base[name]}"
        widths[name] = max(widths[name], int(count) * ELEMENT_BYTES[base[name]])
    return tuple(widths.values())
