"""Compressed bodies: gzip and deflate, as Triton's clients and proxies send them, bounded against bombs.

A body may become a thousand times as long as it was sent, so nothing is decompressed beyond a limit that is
given, and what it may need is known before (:func:`most_bytes`).
"""

from __future__ import annotations

import zlib

from smash_base.errors import InvalidInputError
from smash_export.server.protocol import TooLargeError

REQUESTS = {b"gzip": "gzip", b"x-gzip": "gzip", b"deflate": "deflate"}
WORTH_BYTES = 1024  # shorter answers do not become shorter packets
_RATIO = 1032  # of deflate, at most (zlib's technical details)
_LEVEL = 1  # tensors hardly become shorter with more
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits


def most_bytes(size: int, limit: int) -> int:
    """Bytes that a compressed body of ``size`` bytes can become under ``limit``."""
    return min(limit, size * _RATIO)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The content of a compressed body.

    Args:
        body: the whole body.
        encoding: "gzip" (one member) or "deflate" (with zlib's header, as the standard says, or without).
        limit: bytes of the content, at most.

    Raises:
        InvalidInputError: not of that encoding, damaged, or followed by something.
        TooLargeError: longer than ``limit``.
    """
    zlib_header = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    reader = zlib.decompressobj(_GZIP if encoding == "gzip" else _ZLIB if zlib_header else _RAW)
    try:
        content = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInputError(f"the body is not {encoding}", received=error) from None
    if len(content) > limit:
        del content  # an error keeps what its function holds
        raise TooLargeError("the body is too large when decompressed", expected=f"at most {limit} bytes")
    if not reader.eof or reader.unused_data:
        received = "bytes after its end" if reader.eof else "less than the whole"
        raise InvalidInputError(f"the body is not {encoding}", expected="one stream", received=received)
    return content


def compress(body: bytes, encoding: str) -> bytes:
    """The body in "gzip" or "deflate"."""
    writer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    return writer.compress(body) + writer.flush()


def accepted(header: bytes) -> str | None:
    """Which encoding of an answer a client's ``Accept-Encoding`` asks for first; None for none."""
    for item in header.lower().split(b","):
        name, _, parameters = item.partition(b";")
        weight = parameters.replace(b" ", b"").removeprefix(b"q=")
        refused = weight != b"" and not weight.strip(b"0.")  # q=0
        if name.strip() in (b"gzip", b"deflate") and not refused:
            return name.strip().decode()
    return None
