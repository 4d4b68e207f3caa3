"""The simulation agrees with the formulas where there are some, and with itself."""

from __future__ import annotations

import pytest
from bench.costs import COSTS, DOCUMENT, cost
from bench.simulation import (
    Clock,
    Core,
    Fleet,
    Storm,
    Tree,
    back_by_formula,
    last_by_formula,
    spread,
    storm,
    tables,
)


@pytest.mark.parametrize("tree", [Tree(3, (1,)), Tree(1, (5_000,), tls=False), Tree(2, (40, 3_000)), Tree(1, (7, 20, 500))])
def test_without_receipts_the_last_client_has_it_when_the_formula_says(tree):
    assert spread(tree, answers=False).last_s == pytest.approx(last_by_formula(tree))


def test_receipts_between_the_slices_only_delay():
    tree = Tree(1, (10_000,))
    assert spread(tree).last_s > spread(tree, answers=False).last_s
    assert spread(tree).p50_s <= spread(tree).p99_s <= spread(tree).last_s


@pytest.mark.parametrize("tree", [Tree(2, (3_000,)), Tree(1, (100, 300)), Tree(1, (30, 40, 50))])
def test_every_receipt_comes_to_the_hubs_whether_one_by_one_or_counted(tree):
    expected = tree.clients // tree.hubs * min(2, tree.hubs)
    assert spread(tree).receipts == pytest.approx(expected)
    assert spread(tree, aggregate=True).receipts == pytest.approx(expected)


def test_one_by_one_the_hub_is_the_bound_and_counting_lifts_it():
    tree = Tree(1, (1_000, 1_000))
    assert spread(tree).receipts_s >= tree.clients * cost("receipt")
    assert spread(tree, aggregate=True).receipts_s < spread(tree).receipts_s / 10


@pytest.mark.parametrize("what", [Storm(2_000, 1_000, 30.0), Storm(4_000, 1_000, 0.5)])
def test_clients_are_back_when_the_window_or_the_work_ends(what):
    assert storm(what).last_s == pytest.approx(back_by_formula(what), rel=0.1)


def test_jitter_keeps_a_publish_as_fast_as_ever_and_none_makes_it_wait():
    calm, rush = storm(Storm(5_000, 2_000, 60.0)), storm(Storm(5_000, 2_000, 0.1))
    assert calm.publish_s < 2 * 2_000 * cost("send_tls")
    assert rush.publish_s > 10 * calm.publish_s


def test_the_same_seed_tells_the_same():
    assert spread(Tree(1, (50, 500)), seed=4) == spread(Tree(1, (50, 500)), seed=4)
    assert storm(Storm(500, 100, 3.0), seed=4) == storm(Storm(500, 100, 3.0), seed=4)


def test_a_core_does_one_thing_after_the_other():
    clock, done = Clock(), []
    core = Core(clock)
    clock.at(1, lambda: core.work(2, lambda: done.append(clock.now)))
    clock.at(2, lambda: core.work(1, lambda: done.append(clock.now)))
    clock.run()
    assert done == [3, 4]
    assert core.longest_wait_s == 1


def test_a_fleet_grows_in_proportion():
    small, large = Fleet(100_000), Fleet(1_000_000)
    assert large.workers == 10 * small.workers
    assert large.memory_bytes == pytest.approx(10 * small.memory_bytes)
    assert large.core_share == small.core_share


def test_every_cost_says_where_it_comes_from():
    assert all(each.source and each.what for each in COSTS.values())


def test_the_page_has_the_tables_that_the_costs_give():
    page = DOCUMENT.read_text()
    assert tables() in page, "run: python -m bench simulate"
