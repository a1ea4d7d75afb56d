"""The declared outputs of a model, with which the worker compares every answer before it is sent.

The controller compares as well, and counts a contradicting answer as the worker's fault. Therefore an
output that contradicts the registration (a dimension that depends on the data although the model's file
says that it is fixed) fails here, and only its own request fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clockwork.config import MESSAGE_BYTES_MAX, STRINGS_MAX
from clockwork.device.base import TensorView
from clockwork.formats.prepared import UNKNOWN_RANK, TensorSpec, contradiction
from clockwork.wire.optional import read_defaults


class Given(NamedTuple):
    """The outputs that a prepared model declares. verified: a run at registration has shown their shapes."""

    outputs: Sequence[TensorSpec]
    verified: bool
    batches: bool
    counted: int = 0  # the input whose first axis counts the rows

    @staticmethod
    def of(summary: Mapping[str, Any]) -> Given:
        """Read the declared outputs from PreparedModel.summary()."""
        outputs = [
            TensorSpec(output["name"], output["dtype"], tuple(output["shape"]))
            for output in summary["outputs"]
        ]
        inputs = [(spec["name"], spec["dtype"], spec["shape"]) for spec in summary["inputs"]]
        optional = read_defaults(summary["metadata"], inputs)
        counted = next((index for index, (name, *_) in enumerate(inputs) if name not in optional), 0)
        return Given(outputs, summary.get("outputs_verified", False), summary["batches"], counted)

    def declared(self) -> tuple[list[tuple[int, list[int] | None]], bool, bool, int, int]:
        """Return the arguments of Road.model_ready() that describe the outputs; a dimension of -1 has any
        size."""
        outputs: list[tuple[int, list[int] | None]] = [
            (
                spec.dtype,
                None
                if spec.shape == UNKNOWN_RANK
                else [-1 if isinstance(dimension, str) else dimension for dimension in spec.shape],
            )
            for spec in self.outputs
        ]
        return outputs, self.verified, self.batches, STRINGS_MAX, MESSAGE_BYTES_MAX

    def contradicted_by(
        self, answers: Sequence[Sequence[TensorView]], inputs: Sequence[Sequence[TensorView]]
    ) -> str:
        """Return a sentence that says how a batch's outputs contradict the model, or "". answers and inputs:
        the tensors of each part."""
        for answer, part in zip(answers, inputs):
            rows = part[self.counted].shape[0] if self.batches and part and part[self.counted].shape else 0
            for spec, (dtype, shape, data) in zip(self.outputs, answer):
                why = contradiction(spec, self.verified, rows, dtype, shape)
                if not why and len(data) > MESSAGE_BYTES_MAX:
                    why = f"has {len(data)} bytes, at most {MESSAGE_BYTES_MAX} are sent"
                if why:
                    return f"the model returned an output unlike at registration: output {spec.name!r} {why}"
        return ""
