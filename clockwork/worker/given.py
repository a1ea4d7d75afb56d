"""What a model gives, and whether an answer is that: the worker holds every answer against it before it is sent.

The controller does so as well, and takes an answer that cannot be for the worker's fault. So what a model returns that
registration has not seen (a dimension that depends on the data, where its file says that it is fixed) must end here, as
a failure of that request alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clockwork.config import MESSAGE_BYTES_MAX
from clockwork.device.base import TensorView
from clockwork.formats.prepared import TensorSpec, contradiction


class Given(NamedTuple):
    """Of one prepared model."""

    outputs: Sequence[TensorSpec]
    verified: bool
    batches: bool

    @staticmethod
    def of(summary: Mapping[str, Any]) -> Given:
        """summary: PreparedModel.summary()."""
        outputs = [TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in summary["outputs"]]
        return Given(outputs, summary.get("outputs_verified", False), summary["batches"])

    def contradicted_by(
        self, answers: Sequence[Sequence[TensorView]], inputs: Sequence[Sequence[TensorView]]
    ) -> str:
        """In what the answers of a batch to its parts' inputs are none of the model's, as a sentence; "" if in nothing."""
        for answer, part in zip(answers, inputs):
            rows = part[0].shape[0] if self.batches and part and part[0].shape else 0
            for spec, (dtype, shape, data) in zip(self.outputs, answer):
                why = contradiction(spec, self.verified, rows, dtype, shape)
                if not why and len(data) > MESSAGE_BYTES_MAX:
                    why = f"has {len(data)} bytes, at most {MESSAGE_BYTES_MAX} are sent"
                if why:
                    return f"the model returned what registration did not see: output {spec.name!r} {why}"
        return ""
