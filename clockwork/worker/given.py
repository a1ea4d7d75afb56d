"""The declared outputs of a model, with which the worker compares every answer before it is sent.

The controller compares as well, and takes an impossible answer for the worker's fault. So an output that contradicts what
registration saw (a dimension that depends on the data, where its file says that it is fixed) must end here, as a failure
of that request alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clockwork.config import MESSAGE_BYTES_MAX, STRINGS_MAX
from clockwork.device.base import TensorView
from clockwork.formats.prepared import UNKNOWN_RANK, PreparedModel, TensorSpec, contradiction


class Given(NamedTuple):
    """The outputs that a prepared model gives. verified: registration has seen their shapes."""

    outputs: Sequence[TensorSpec]
    verified: bool
    batches: bool
    counted: int = 0  # the input whose first axis counts the rows

    @staticmethod
    def of(summary: Mapping[str, Any]) -> Given:
        """summary: PreparedModel.summary()."""
        outputs = [
            TensorSpec(output["name"], output["dtype"], tuple(output["shape"]))
            for output in summary["outputs"]
        ]
        rowless = PreparedModel.from_dict(dict(summary)).rowless()
        counted = rowless.index(False) if False in rowless else 0
        return Given(outputs, summary.get("outputs_verified", False), summary["batches"], counted)

    def declared(self) -> tuple[list[tuple[int, list[int] | None]], bool, bool, int, int]:
        """What the road compares results with; see model_ready() in worker/_road.pyi. Dimensions of -1 may be anything."""
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
        """How the answers of a batch contradict the model, as a sentence; "" if they do not. inputs: of each part."""
        for answer, part in zip(answers, inputs):
            rows = part[self.counted].shape[0] if self.batches and part and part[self.counted].shape else 0
            for spec, (dtype, shape, data) in zip(self.outputs, answer):
                why = contradiction(spec, self.verified, rows, dtype, shape)
                if not why and len(data) > MESSAGE_BYTES_MAX:
                    why = f"has {len(data)} bytes, at most {MESSAGE_BYTES_MAX} are sent"
                if why:
                    return f"the model returned what registration did not see: output {spec.name!r} {why}"
        return ""
