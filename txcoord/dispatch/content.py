"""Decompression of answers that were compressed although nobody asked for it."""

from __future__ import annotations

import zlib

_MAX_CODINGS = 3


class ContentError(ValueError):
    """The body cannot be decoded; the words go behind "the body"."""


def decode_content(body: bytes, encoding: str, *, limit: int) -> bytes:
    """Undo Content-Encoding; never makes more than `limit` bytes.

    Raises:
        ContentError: unknown coding, damaged data, or more than `limit` bytes.
    """
    codings = [coding for part in encoding.lower().split(",") if (coding := part.strip()) not in ("", "identity")]
    if len(codings) > _MAX_CODINGS:
        raise ContentError("is compressed too many times")
    for coding in reversed(codings):
        body = _decode(body, coding, limit)
    return body


def _decode(body: bytes, coding: str, limit: int) -> bytes:
    if not body:
        return body
    if coding in ("gzip", "x-gzip"):
        return _inflate(body, zlib.MAX_WBITS | 16, limit)
    if coding == "deflate":
        try:
            return _inflate(body, zlib.MAX_WBITS, limit)
        except zlib.error:
            # Some servers leave out zlib's header, and browsers let them.
            return _inflate(body, -zlib.MAX_WBITS, limit, last_try=True)
    raise ContentError("is in a content coding that is not supported (gzip and deflate are)")


def _inflate(body: bytes, window_bits: int, limit: int, *, last_try: bool = False) -> bytes:
    decompressor = zlib.decompressobj(window_bits)
    try:
        decoded = decompressor.decompress(body, limit + 1)
    except zlib.error:
        if window_bits == zlib.MAX_WBITS and not last_try:
            raise
        raise ContentError("is damaged: it cannot be decompressed") from None
    if len(decoded) > limit:
        raise ContentError(f"is longer than {limit} bytes when decompressed")
    if not decompressor.eof:
        raise ContentError("is damaged: its compressed data ends early")
    return decoded
