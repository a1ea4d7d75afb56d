"""The models' interfaces and routes as the exchange has them, to check requests without Python."""

from __future__ import annotations

import weakref
from typing import Any

from clockwork.controller._exchange import Exchange
from clockwork.controller._values import ModelInterface
from clockwork.controller.effects import Forward
from clockwork.controller.models.version import ModelVersion


class ExchangeMirror:
    """Forwards the changes of a ModelTable to the exchange. Models with equal declarations share a copy."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._interfaces: weakref.WeakValueDictionary[Any, ModelInterface] = weakref.WeakValueDictionary()
        self._interface_of: dict[int, ModelInterface] = {}  # interfaces by model id; keeps them alive

    def serve(self, model: ModelVersion) -> None:
        prepared = model.prepared
        assert prepared is not None
        inputs, outputs = prepared.inputs, prepared.outputs
        lengths, defaults = prepared.lengths, prepared.defaults()
        flags, more = (prepared.batches, model.verified), (tuple(lengths.items()), tuple(defaults.items()))
        key = (tuple(inputs), tuple(outputs), flags, more)
        interface = self._interfaces.get(key)
        if interface is None:
            interface = ModelInterface(inputs, outputs, prepared.batches, model.verified, lengths, defaults)
            self._interfaces[key] = interface
        self._interface_of[model.model_id] = interface
        self._exchange.serve(model.model_id, model.record.version, model.label, model.slo_ns, interface)

    def forward(self, action: Forward) -> None:
        if not action.shares:
            self._exchange.unroute(action.name)
        elif action.shadow is None:
            self._exchange.route(action.name, action.shares)
        else:
            model_id, asked = action.shadow
            self._exchange.route(action.name, action.shares, model_id, asked.parts, asked.tolerance)

    def withdraw(self, model_id: int) -> None:
        self._interface_of.pop(model_id, None)
        self._exchange.forget(model_id)
