"""Decompression, bounded."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.dispatch.content import ContentError, decode_content


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


CODERS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}


@given(st.binary(max_size=200), st.lists(st.sampled_from(list(CODERS)), max_size=3))
def test_what_was_compressed_comes_back(data: bytes, codings: list[str]) -> None:
    body = data
    for coding in codings:
        body = CODERS[coding](body)

    assert decode_content(body, ", ".join(codings), limit=1000) == data


@given(st.binary(min_size=1, max_size=200))
def test_deflate_without_the_header_is_read_too(data: bytes) -> None:
    assert decode_content(raw_deflate(data), "deflate", limit=1000) == data


@pytest.mark.parametrize(
    ("body", "encoding", "why"),
    [
        pytest.param(gzip.compress(b"a" * 1001), "gzip", "longer than 1000 bytes", id="bomb"),
        pytest.param(gzip.compress(gzip.compress(b"a" * 10**7)), "gzip, gzip", "longer than 1000", id="nested bomb"),
        pytest.param(gzip.compress(b"abc")[:-9], "gzip", "ends early", id="cut"),
        pytest.param(b"garbage", "gzip", "damaged", id="no gzip"),
        pytest.param(b"\xff\xff garbage", "deflate", "damaged", id="no deflate"),
        pytest.param(b"x", "br", "not supported", id="unknown coding"),
        pytest.param(b"x", "gzip,gzip,gzip,gzip", "too many times", id="many codings"),
    ],
)
def test_what_cannot_be_decoded_is_an_error(body: bytes, encoding: str, why: str) -> None:
    with pytest.raises(ContentError, match=why):
        decode_content(body, encoding, limit=1000)


def test_nothing_is_nothing_in_any_coding() -> None:
    assert decode_content(b"", "gzip", limit=10) == b""
