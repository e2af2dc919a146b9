"""Arrays of different lengths as one array behave as a tuple of them."""

import numpy as np
import pytest

from fedpgp.data.ragged import Ragged

PARTS = [np.array([3, 1]), np.array([], int), np.array([4]), np.array([0, 2, 5])]


def lists(arrays):
    return [array.tolist() for array in arrays]


def test_it_has_the_items_of_a_tuple():
    found, wanted = Ragged.of(PARTS), lists(PARTS)
    assert len(found) == 4
    assert lists(found) == [found[index].tolist() for index in range(4)] == wanted
    assert lists(found[index] for index in (-1, -4)) == [wanted[-1], wanted[-4]]
    assert lists(found[1:]) == wanted[1:]
    assert lists(found[::-2]) == wanted[::-2]
    assert found.counts.tolist() == [2, 0, 1, 3]
    assert found.owners.tolist() == [0, 0, 2, 3, 3, 3]
    assert found[3].base is found.flat
    with pytest.raises(IndexError):
        found[4]
    assert Ragged.of(found) is found
    assert lists(Ragged.of(())) == []


def test_items_are_chosen_replaced_and_put_elsewhere():
    found = Ragged.of(PARTS)
    assert lists(found.only(found.flat > 1)) == [[3], [], [4], [2, 5]]
    assert lists(found.taken(np.arange(10, 16))) == [[13, 11], [], [14], [10, 12, 15]]
    assert lists(found.placed(np.array([1, 2, 3, 6]), 7)) == [[], [3, 1], [], [4], [], [], [0, 2, 5]]
    assert lists(Ragged.joined([found, found[:1]])) == [*lists(PARTS), [3, 1]]
