"""Each process loads the rows that its devices hold, and nothing twice."""

import numpy as np
import pytest

from intellect_jax.config import default_config
from intellect_jax.parallel.mesh import make_mesh, sharding
from intellect_jax.parallel.parts import Share, own_share, place, share_out


def shares(held):
    return [share_out(held, process) for process in held]


def test_processes_of_different_rows_share_a_batch_out():
    first, second = shares({0: (0, 1, 2), 1: (3, 4, 5)})
    assert (first.part, first.parts, first.counts) == (0, 2, True) and list(first.rows) == [0, 1, 2]
    assert (second.part, second.parts, second.counts) == (1, 2, True) and list(second.rows) == [3, 4, 5]


def test_processes_of_the_same_rows_load_the_same_part_and_one_of_them_counts_it():
    found = shares({0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)})
    assert [(share.part, share.parts, share.counts) for share in found] == [
        (0, 2, True),
        (0, 2, False),
        (1, 2, True),
        (1, 2, False),
    ]


def test_rows_that_are_apart_stay_in_order():
    first, second = shares({0: (0, 1, 4, 5), 1: (2, 3, 6, 7)})
    assert list(first.rows) == [0, 1, 4, 5] and (second.part, list(second.rows)) == (1, [2, 3, 6, 7])


@pytest.mark.parametrize("held", [{0: (0, 1), 1: (1, 2)}, {0: (0, 1), 1: (2,)}])
def test_where_rows_overlap_each_process_loads_all(held):
    assert [(s.part, s.parts, s.counts, list(s.rows)) for s in shares(held)] == [
        (0, 1, True, [0, 1, 2]),
        (0, 1, False, [0, 1, 2]),
    ]


def test_a_part_is_placed_as_it_was():
    where = sharding(make_mesh(default_config().parallel), None, "rows", "sequence")
    part = np.arange(2 * 4 * 8).reshape(2, 4, 8)
    share = own_share(where, part.shape, process=0)
    assert share == Share(0, 1, True, share.rows)
    assert np.array_equal(place(part, where, share), part)
