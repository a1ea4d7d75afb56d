"""A model that is being made ready, on the GPU that is to serve it: loaded, checked and timed in
reservations.

A trial runs in the thread that holds the reservation, beside the lanes, of which only *execute* stands still.
It uses the pages that the reservation brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clockwork.device._cuda_model import CompiledModel
from clockwork.device._cuda_reserve import ReservingCore
from clockwork.device._cudriver import CudaError, PinnedBytes
from clockwork.device.base import Completion, DeviceBroken, TensorView
from clockwork.device.cuda_memory import DeviceMemory
from clockwork.errors import InvalidModel
from clockwork.wire.messages import NEVER_NS, Infer, Profile, Status

LOAD_ID = 1  # The load id of a trial's residency, while no action names the model


class CudaTrial:
    """Implements device.base.Trial. The thread that holds the reservation calls it; stage() and close() need
    none."""

    def __init__(
        self, core: ReservingCore, memory: DeviceMemory, model: CompiledModel, staging: PinnedBytes | None
    ) -> None:
        """staging: a page through which weights outside the host store are copied; None: they are in the
        store."""
        self._core = core
        self._memory = memory
        self._model = model
        self._staging = staging

    @property
    def is_staged(self) -> bool:
        return self._staging is not None

    def stage(self, weights: Path, page: int, page_bytes: int) -> None:
        """Read a page into the staging memory, ready to be copied. Raises OSError."""
        if self._staging is not None:
            with open(weights, "rb", buffering=0) as file, memoryview(self._staging) as target:
                file.seek(page * page_bytes)
                done = 0
                while done < page_bytes and (count := file.readinto(target[done:page_bytes])):
                    done += count

    def claim(self, run_starts: list[int]) -> str:
        """Claim pages for the model. Returns a sentence if they are not free. Raises InvalidModel,
        DeviceBroken."""
        try:
            self._memory.make_current()
        except CudaError as error:
            raise self._told(str(error)) from None
        return self._core.claim(self._model, run_starts) or ""

    def copy(self, page: int) -> int:
        """Load a page. Returns the time in ns. Raises InvalidModel, DeviceBroken."""
        try:
            return self._core.copy(self._model, page, self._staging)
        except CudaError as error:
            raise self._told(str(error)) from None

    def settle(self) -> None:
        """Mark the model as loaded, after the last copy()."""
        self._core.settle(self._model, LOAD_ID)

    def run(self, inputs: Sequence[TensorView], expected_ns: int) -> Completion:
        """Execute the model. Raises InvalidModel, DeviceBroken."""
        model_id = self._model.model_id
        action = Infer(0, 0, model_id, LOAD_ID, 0, NEVER_NS, expected_ns, [])
        return self._ended(self._core.execute(action, [inputs]))

    def time(self, shapes: Sequence[Sequence[int]], expected_ns: int) -> int:
        """Execute the model on seeded inputs. Returns the time in ns. Raises InvalidModel, DeviceBroken."""
        model_id = self._model.model_id
        action = Profile(0, 0, model_id, LOAD_ID, 0, NEVER_NS, expected_ns, [list(shape) for shape in shapes])
        return self._ended(self._core.execute(action, None)).execute[2]

    def _ended(self, done: Completion) -> Completion:
        if done.status is Status.OK:
            return done
        raise self._told(done.text or done.status.name)

    def _told(self, text: str) -> DeviceBroken | InvalidModel:
        if self._core.fault_text:
            return DeviceBroken(self._core.fault_text)
        return InvalidModel(f"the program fails on the device: {text}")

    def close(self) -> None:
        """Release the pages."""
        self._core.abandon(self._model)
