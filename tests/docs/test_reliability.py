"""docs/reliability.md: its table is that of the tests."""

from tests.faults.table import rows, table, written


def test_the_table_is_made_of_the_marked_tests() -> None:
    assert len(rows()) > 80
    assert written() == table(), "python tests/faults/table.py --write"
