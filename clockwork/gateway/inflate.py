"""Inflates compressed bodies beside the event loop, in pieces, within bounds on bytes and on the ratio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import zlib
from collections.abc import Callable

from clockwork.config.gateway import INFLATE_RATIO_MAX, INFLATED_BYTES_FREE, PIECE_BYTES
from clockwork.errors import InvalidInput
from clockwork.gateway.errors import TooLarge, Unsupported

_GZIP, _ZLIB, _RAW = 31, 15, -15  # values of zlib's parameter wbits


class Inflater:
    """Inflates one body at a time, on a thread of its own; zlib releases the interpreter's lock meanwhile."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "inflate")

    async def inflate(
        self, body: bytes | bytearray, encoding: str, limit: int, hold: Callable[[int], None]
    ) -> bytes:
        """Return the inflated body.

        hold: called with the bytes of each piece, and with the negative sum if this method raises. Raises
        Unsupported, InvalidInput for a body that is not in the encoding, TooLarge, and the errors of
        ``hold``.
        """
        window = _window(encoding, body)
        most = min(limit, max(INFLATED_BYTES_FREE, len(body) * INFLATE_RATIO_MAX))
        stream, loop = zlib.decompressobj(window), asyncio.get_running_loop()
        pieces: list[bytes] = []
        held, rest = 0, body
        try:
            while not stream.eof:
                piece = await loop.run_in_executor(self._pool, stream.decompress, rest, PIECE_BYTES)
                rest = stream.unconsumed_tail
                if not piece and not rest and not stream.eof:
                    raise InvalidInput("the request's body is broken: it ends before its encoding does")
                hold(len(piece))
                held += len(piece)
                if held > most:
                    raise TooLarge(
                        f"the request has more than {most} bytes once its {len(body)} bytes of {encoding} are inflated"
                    )
                pieces.append(piece)
            if stream.unused_data:
                raise InvalidInput(f"the request's body is broken: something follows its {encoding}")
            return await loop.run_in_executor(self._pool, b"".join, pieces)
        except BaseException as error:
            hold(-held)
            if isinstance(error, zlib.error):
                raise InvalidInput(f"the request's body is broken: it is no {encoding} ({error})") from None
            raise

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _window(encoding: str, body: bytes | bytearray) -> int:
    if encoding == "gzip":
        return _GZIP
    if encoding == "deflate":  # the standard has zlib's header, which some clients leave out
        return _ZLIB if body[:1] and body[0] & 0x0F == 8 else _RAW
    raise Unsupported(f"Content-Encoding {encoding[:40]!r} is not taken: gzip, deflate or none")
