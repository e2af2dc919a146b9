"""Two runs compared client by client."""

from __future__ import annotations

from rich.console import Console

from fedpgp.analysis.loading import read
from fedpgp.analysis.report import pairwise


def test_clients_are_ordered_by_the_largest_change(made_run, counts):
    first = read(made_run(test_local=[70], clients=counts(local=[6, 8])))
    second = read(made_run("method.name=coop", test_local=[75], clients=counts(local=[7, 4])))
    table = pairwise.clients(first, second)
    assert table.headings == ("client", "Local, A", "Local, B", "Local, B - A")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["ben", "80.00", "40.00", "-40.00"],
        ["anna", "60.00", "70.00", "+10.00"],
    ]
    assert table.caption == "Local: 1 clients gain, 1 lose, 0 stay; largest change first"
    Console(quiet=True).print(pairwise.side_by_side(first, second))
