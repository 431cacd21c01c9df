"""The documents that a transaction is stored as."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.sagas import make_saga
from txcoord.model import Attempt, BranchOp, Op, OpStatus, Options, Outcome
from txcoord.store import codec

_texts = st.text(st.characters(codec="utf-8"), max_size=30)
_numbers = st.integers(0, 2**63 - 1)
_payloads = st.one_of(st.binary(max_size=40), _texts.map(str.encode), st.sampled_from([b"", b"same", b"\xff"]))

_attempts = st.builds(
    Attempt,
    at_us=_numbers,
    duration_us=_numbers,
    outcome=st.sampled_from(Outcome),
    code=st.integers(0, 599),
    detail=_texts,
)
_branches = st.builds(
    BranchOp,
    branch_id=_texts,
    op=st.sampled_from(Op),
    url=_texts,
    payload=_payloads,
    status=st.sampled_from(OpStatus),
    reached=st.booleans(),
    failures=st.integers(0, 1000),
    refusals=st.integers(0, 1000),
    in_vain=st.integers(0, 1000),
    held_off=st.sampled_from(["", "http://h:80: not called, it is held off"]),
    due_us=_numbers,
    finished_us=st.none() | _numbers,
    attempts=st.lists(_attempts, max_size=3).map(tuple),
)
_options = st.builds(
    Options,
    wait_result=st.booleans(),
    timeout_to_fail_s=_numbers,
    request_timeout_s=_numbers,
    retry_interval_s=_numbers,
    retry_limit=_numbers,
    branch_headers=st.dictionaries(_texts, _texts, max_size=3),
    concurrent=st.booleans(),
    orders=st.dictionaries(st.integers(0, 99), st.lists(st.integers(0, 99), max_size=3).map(tuple), max_size=3),
)


@given(
    branches=st.lists(_branches, max_size=6).map(tuple),
    options=_options,
    protocol=_texts,
    query_prepared=_texts,
    custom_data=_texts,
)
def test_what_is_written_is_read_again(
    branches: tuple[BranchOp, ...], options: Options, protocol: str, query_prepared: str, custom_data: str
) -> None:
    tx = make_saga().replace(
        branches=branches, options=options, protocol=protocol, query_prepared=query_prepared, custom_data=custom_data
    )
    definition, progress = codec.encode_definition(tx), codec.encode_progress(branches)

    read, read_branches = codec.decode(definition, progress)

    assert read_branches == branches
    assert read.options == options
    assert (read.protocol, read.query_prepared, read.custom_data) == (protocol, query_prepared, custom_data)
    assert not any(byte < 0x20 for byte in definition + progress)
    json.loads(definition)
    json.loads(progress)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_written(text: str) -> None:
    attempt = Attempt(at_us=1, duration_us=1, outcome=Outcome.UNKNOWN, detail=text)
    branch = BranchOp(branch_id="01", op=Op.ACTION, url=text, attempts=(attempt,))
    tx = make_saga().replace(branches=(branch,), custom_data=text, options=Options(branch_headers={text: text}))

    read, [read_branch] = codec.decode(codec.encode_definition(tx), codec.encode_progress(tx.branches))

    is_text = text.encode("utf-8", "replace").decode() == text
    assert (read_branch == branch) == is_text
    assert (read.custom_data == text) == is_text
    cleaned = codec.clean_text(text)
    assert "\0" not in cleaned
    assert len(cleaned.encode()) >= len(text)
    assert (cleaned == text) == (is_text and "\0" not in text)


def test_what_is_as_it_began_takes_no_room() -> None:
    assert codec.encode_progress(make_saga("PPPP").branches) == b"[]"
    assert len(json.loads(codec.encode_progress(make_saga("PSPP").branches))) == 1


def test_refusals_take_room_only_where_there_are_some() -> None:
    [branch] = make_saga("S").branches

    assert len(json.loads(codec.encode_progress([branch]))[0]) == 7
    assert json.loads(codec.encode_progress([branch.replace(refusals=3)]))[0][7:] == [3]
    assert codec.encode_progress([BranchOp(branch_id="01", op=Op.CONFIRM, url="u", refusals=1)]) != b"[]"


def test_progress_without_refusals_is_read() -> None:
    definition = b'{"branches":[["01","cancel","u","p"],["01","confirm","u"]]}'

    _, branches = codec.decode(definition, b'[[1,"prepared",17,2,true,null,[]]]')

    untouched = BranchOp(branch_id="01", op=Op.CANCEL, url="u", payload=b"p")
    tried = BranchOp(branch_id="01", op=Op.CONFIRM, url="u", payload=b"p", due_us=17, failures=2, reached=True)
    assert branches == (untouched, tried)
    assert tried.refusals == 0


def test_a_payload_that_two_operations_share_is_written_once() -> None:
    payload = b'{"order": 4711}'
    saga = make_saga("PPPP")
    shared = saga.replace(branches=tuple(branch.replace(payload=payload) for branch in saga.branches))

    assert codec.encode_definition(shared).count(b"4711") == 1
