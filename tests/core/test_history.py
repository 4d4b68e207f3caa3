"""History against the definition of RFC 6962, section 2.1, word for word."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.contents import hashed

from heliograph.core import history


def merkle_tree_hash(ids: list[bytes]) -> bytes:
    if not ids:
        return hashlib.sha256(b"").digest()
    if len(ids) == 1:
        return hashlib.sha256(b"\x00" + ids[0]).digest()
    k = 1
    while 2 * k < len(ids):
        k *= 2
    return hashlib.sha256(b"\x01" + merkle_tree_hash(ids[:k]) + merkle_tree_hash(ids[k:])).digest()


@given(st.integers(1, 130), st.data())
def test_roots_and_paths_of_every_size(count, data):
    ids = [hashed(i) for i in range(count)]
    past = history.History(ids)
    size = data.draw(st.integers(1, count))
    number = data.draw(st.integers(1, size))
    root, path = past.root(size), past.path(number, size)
    assert root == merkle_tree_hash(ids[:size])
    assert history.verify(ids[number - 1], number, size, path, root)
    assert not history.verify(hashed("another"), number, size, path, root)
    for wrong in range(-1, size + 2):
        assert wrong == number or not history.verify(ids[number - 1], wrong, size, path, root)
    for cut in range(len(path)):
        assert not history.verify(ids[number - 1], number, size, path[:cut], root)
        assert not history.verify(ids[number - 1], number, size, [*path[:cut], hashed("x"), *path[cut + 1 :]], root)
    assert not history.verify(ids[number - 1], number, size, [*path, root], root)


@given(st.integers(0, 130))
def test_peaks_are_all_that_a_commit_has_to_keep(count):
    ids = [hashed(i) for i in range(count)]
    peaks: list[bytes] = []
    for number, each in enumerate(ids):
        peaks = history.push(peaks, number, each)
    assert history.fold(peaks) == merkle_tree_hash(ids) == history.History(ids).root()
    assert len(peaks) == count.bit_count()


def test_no_version_before_the_first():
    assert history.EMPTY == merkle_tree_hash([]) == history.History().root() == history.fold([])


@pytest.mark.parametrize(("number", "size"), [(0, 3), (4, 3), (1, 9), (-1, 3)])
def test_a_path_of_a_version_that_is_not_there(number, size):
    past = history.History(hashed(i) for i in range(5))
    with pytest.raises(ValueError, match="not among"):
        past.path(number, size)


@pytest.mark.parametrize("size", [-1, 6])
def test_a_root_of_more_than_there_is(size):
    with pytest.raises(ValueError, match="versions"):
        history.History(hashed(i) for i in range(5)).root(size)
