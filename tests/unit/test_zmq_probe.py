"""The probe agrees with pyzmq."""

from __future__ import annotations

import pytest
import zmq

from clockwork.wire import _zmq


def test_probe_follows_a_message_part_by_part() -> None:
    with zmq.Context() as context, context.socket(zmq.PAIR) as sender, context.socket(zmq.PAIR) as receiver:
        receiver.bind("inproc://probe")
        sender.connect("inproc://probe")
        probe = _zmq.Probe(receiver)

        def seen() -> tuple[bool, bool]:
            """Return (readable, more); pyzmq must agree."""
            found = probe.readable(), probe.more()
            assert found == (
                bool(int(receiver.get(zmq.EVENTS)) & zmq.POLLIN),
                bool(receiver.get(zmq.RCVMORE)),
            )
            return found

        assert seen() == (False, False)
        sender.send_multipart([b"a", b"b"])
        assert seen() == (True, False)
        assert receiver.recv() == b"a"
        assert seen() == (True, True)
        assert receiver.recv() == b"b"
        assert seen() == (False, False)
        probe.forget()


def test_a_forgotten_socket_is_an_error_and_not_a_crash() -> None:
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        probe = _zmq.Probe(socket)
        probe.forget()
        with pytest.raises(zmq.ZMQError, match=r"[Ss]ocket"):
            probe.readable()
        with pytest.raises(zmq.ZMQError):
            probe.more()
