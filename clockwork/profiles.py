"""What a model costs on a device, as plain numbers: for emulated devices, the simulator and planning.

A profile file is JSON: {"profiles": [{...}, ...]}, one object per model with the fields of ModelProfile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class ModelProfile:
    """One model on one kind of device, without network and queues."""

    name: str
    exec_ns: Mapping[int, int]  # batch size -> execution time of the whole batch; at least {1: ...}
    weights_bytes: int
    load_ns: int  # host memory to device
    input_bytes: int = 0  # of one request
    output_bytes: int = 0
    program: str = ""  # models of one program share estimates; "": the name
    batch_max: int = 0  # largest batch; 0: the largest of exec_ns
    slo_ns: int = 0  # 0: none
