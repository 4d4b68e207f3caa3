"""Ratios of medians over pairs, and their intervals."""

from __future__ import annotations

import random

import pytest
from bench.ratio import ratio


def test_equal_systems_have_a_ratio_of_one_and_an_interval_around_it():
    chance = random.Random(3)
    ours = [10 + chance.random() for _ in range(15)]
    theirs = [10 + chance.random() for _ in range(15)]
    found = ratio(ours, theirs)
    assert found.low <= 1 <= found.high
    assert found.high - found.low < 0.1


def test_what_the_machine_does_to_both_of_a_pair_does_not_widen_the_interval():
    mood = [1.0, 3.0, 2.0, 5.0, 1.5, 4.0, 2.5]
    found = ratio([2 * each for each in mood], mood)
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_one_disturbed_pair_does_not_move_the_ratio_of_medians():
    assert ratio([10, 10, 10, 10, 99], [5, 5, 5, 5, 5]).value == 2


def test_the_same_figures_give_the_same_interval():
    assert ratio([3, 4, 5, 6], [2, 3, 3, 4]) == ratio([3, 4, 5, 6], [2, 3, 3, 4])


def test_nothing_cannot_be_compared():
    with pytest.raises(ValueError, match="nothing"):
        ratio([], [])
