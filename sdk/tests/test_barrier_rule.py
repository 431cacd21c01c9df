"""The barrier's rule and its statements, by themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.barrier import rule
from txcoord.barrier.rule import BarrierCall, Found, Passage, Row
from txcoord.barrier.tables import (
    COLUMNS,
    Database,
    Placeholders,
    create_statements,
    exists_values,
    insert_values,
    statements,
    table_name,
)
from txcoord.errors import InvalidRequestError


class Table:
    """The unique key, and nothing else of a database."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str, str], Row] = {}

    def insert(self, row: Row) -> bool:
        key = (row.gid, row.branch_id, row.op, row.barrier_id)
        return self.rows.setdefault(key, row) is row

    def deliver(self, op: str, barrier_id: str = "01") -> Passage:
        call = make_call(op, barrier_id)
        origin_inserted = call.origin is not None and self.insert(call.origin)
        own_inserted = self.insert(call.own)
        passage = rule.judge(origin_inserted=origin_inserted, own_inserted=own_inserted)
        if passage is not None:
            return passage
        found = self.rows[call.gid, call.branch_id, call.op, call.barrier_id]
        return rule.judge_existing(call, Found(gid=found.gid, reason=found.reason))


def make_call(op: str, barrier_id: str = "01") -> BarrierCall:
    return BarrierCall(trans_type="saga", gid="g1", branch_id="01", op=op, barrier_id=barrier_id)


PAIRS = st.sampled_from([("action", "compensate"), ("try", "cancel"), ("action", "rollback")])


@given(pair=PAIRS, arrivals=st.lists(st.booleans(), max_size=12))
def test_in_any_order_each_runs_at_most_once_and_nothing_stays_half_done(
    pair: tuple[str, str], arrivals: list[bool]
) -> None:
    forward, backward = pair
    table = Table()
    runs = [op for op in (backward if is_back else forward for is_back in arrivals) if table.deliver(op).runs]

    assert runs in ([], [forward], [forward, backward])
    if any(arrivals):
        assert runs in ([], [forward, backward])


@given(ops=st.lists(st.sampled_from(["confirm", "commit", "action", "msg"]), max_size=8))
def test_what_undoes_nothing_runs_once(ops: list[str]) -> None:
    table = Table()
    runs = [op for op in ops if table.deliver(op).runs]

    assert sorted(runs) == sorted(set(ops))


def test_calls_with_different_numbers_do_not_meet() -> None:
    table = Table()

    assert [table.deliver("action", number) for number in ("01", "02", "01")] == [
        Passage.RUN,
        Passage.RUN,
        Passage.DUPLICATE,
    ]
    assert table.deliver("compensate", "03") is Passage.EMPTY


def test_the_rows_are_those_that_dtm_writes() -> None:
    call = make_call("compensate", "02")

    assert call.origin is not None
    assert insert_values(call.origin) == ("saga", "g1", "01", "action", "02", "compensate")
    assert insert_values(call.own) == ("saga", "g1", "01", "compensate", "02", "compensate")
    assert make_call("action").origin is None


def test_the_row_of_another_gid_is_never_taken_for_ours() -> None:
    with pytest.raises(InvalidRequestError, match="'g1' and 'G1' for the same"):
        rule.judge_existing(make_call("action"), Found(gid="G1", reason="action"))


@pytest.mark.parametrize(("number", "name"), [(1, "01"), (9, "09"), (99, "99"), (100, "100")])
def test_calls_are_numbered_with_two_digits(number: int, name: str) -> None:
    assert rule.barrier_id_of(number) == name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gid", "", "gid is missing"),
        ("gid", "x" * 129, "gid has 129 characters; the barrier table holds 128"),
        ("branch_id", "x" * 129, "branch_id has 129"),
        ("op", "x" * 46, "op has 46"),
        ("trans_type", "x" * 46, "trans_type has 46"),
        ("barrier_id", "x" * 46, "barrier_id has 46"),
        ("gid", "a\x00b", "NUL"),
    ],
)
def test_what_would_not_stand_in_its_column_whole_is_refused(field: str, value: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        rule.check(field, value)


@pytest.mark.parametrize("field", rule.LIMITS)
def test_what_just_fits_passes(field: str) -> None:
    value = "ü" * rule.LIMITS[field]
    assert rule.check(field, value) == value


@pytest.mark.parametrize("meaning", Passage)
def test_each_passage_can_be_told_to_people(meaning: Passage) -> None:
    assert meaning.meaning
    assert meaning.runs is (meaning is Passage.RUN)


@pytest.mark.parametrize(
    "name", ["", "a b", "a;drop table b", "a.b.c", "a-b", "1a", "`a`", '"a"', "a.", ".a", "ä", "a\n"]
)
@pytest.mark.parametrize("database", Database)
def test_a_table_name_that_is_not_a_name_is_refused(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="cannot name the barrier table"):
        table_name(database, name)


def test_a_table_in_sqlite_has_no_schema() -> None:
    with pytest.raises(InvalidRequestError, match="SQLite has no schemas"):
        table_name(Database.SQLITE, "main.barrier")


def test_the_tables_are_where_dtm_looks_for_them() -> None:
    assert table_name(Database.MYSQL, None) == "dtm_barrier.barrier"
    assert table_name(Database.POSTGRESQL, None) == "dtm_barrier.barrier"
    assert table_name(Database.SQLITE, None) == "barrier"
    assert exists_values(Database.POSTGRESQL, "dtm_barrier.barrier") == ("dtm_barrier.", "barrier")
    assert any("uniq_barrier" in statement for statement in create_statements(Database.POSTGRESQL, None))
    assert "create sequence if not exists dtm_barrier.barrier_seq" in create_statements(Database.POSTGRESQL, None)


@pytest.mark.parametrize("placeholders", Placeholders)
@pytest.mark.parametrize("database", Database)
def test_every_value_has_its_mark(database: Database, placeholders: Placeholders) -> None:
    said = statements(database, "shop.barrier" if database is not Database.SQLITE else "b", placeholders)

    assert said.insert.count(placeholders.value) == len(COLUMNS)
    assert said.find.count(placeholders.value) == 4
