import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import ENTROPY_EDGES, entropy_histogram, frequent_tokens

T = torch.tensor


def test_histogram_by_hand():
    # edges 0, 1, 2: [0, 1) holds -1e-9 (a rounding error) and 0.5; [1, 2) holds 1.0, its lower edge, and 1.9; the
    # open bin holds 2.0 and 7.0.  The second row's last two columns are padding.
    entropies = T([[-1e-9, 0.5, 1.0, 1.9], [2.0, 7.0, 0.0, 0.0]])
    mask = T([[True, True, True, True], [True, True, False, False]])
    assert entropy_histogram(entropies, mask, T([0.0, 1.0, 2.0])).tolist() == [2, 2, 2]
    # forks among them: 1.9 and 7.0
    forks = T([[False, False, False, True], [False, True, False, False]])
    assert entropy_histogram(entropies, forks, T([0.0, 1.0, 2.0])).tolist() == [0, 1, 1]


def test_no_tokens_make_empty_bins():
    nothing = torch.zeros(2, 3)
    assert entropy_histogram(nothing, nothing.bool(), T([0.0, 1.0])).tolist() == [0, 0]
    columns = frequent_tokens(nothing.long(), nothing, nothing.bool(), nothing.bool(), 5)
    assert [column.tolist() for column in columns] == [[], [], [], []]


def test_logged_bins_are_a_tenth_of_a_nat():
    assert (ENTROPY_EDGES[0], ENTROPY_EDGES[7], ENTROPY_EDGES[-1], len(ENTROPY_EDGES)) == (0.0, 0.7, 4.0, 41)
    on_edges = T([ENTROPY_EDGES])  # a float32 entropy that equals an edge counts above it
    assert entropy_histogram(on_edges, on_edges >= 0, T(ENTROPY_EDGES)).tolist() == [1] * 41
    assert entropy_histogram(on_edges.double(), on_edges >= 0, T(ENTROPY_EDGES).double()).tolist() == [1] * 41


def test_fork_tokens_by_hand():
    # token 9: seen at 1.0, 2.0, 3.0, a fork twice, mean 2.0; token 4: seen at 0.5 and 2.5, a fork once, mean 1.5;
    # token 2: seen and a fork once, mean 1.25; token 6 is no fork; the 9 in the padding does not count.
    tokens = T([[9, 4, 9, 6], [9, 4, 2, 9]])
    entropies = T([[1.0, 0.5, 2.0, 0.1], [3.0, 2.5, 1.25, 0.0]])
    mask = T([[True, True, True, True], [True, True, True, False]])
    forks = T([[False, False, True, False], [True, True, True, False]])
    columns = frequent_tokens(tokens, entropies, mask, forks, 60)
    # 2 and 4 are forks equally often: the lower id first
    assert [column.tolist() for column in columns] == [[9, 2, 4], [3, 1, 2], [2, 1, 1], [2.0, 1.25, 1.5]]
    assert frequent_tokens(tokens, entropies, mask, forks, 2)[0].tolist() == [9, 2]
    assert frequent_tokens(tokens, entropies, mask, forks, 0)[0].tolist() == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 5, width=32), st.sampled_from("pfs")), min_size=1, max_size=30),
    st.integers(0, 7),
)
def test_both_equal_their_definitions(drawn, most):
    ids, values, kinds = ([item[i] for item in drawn] for i in range(3))
    tokens, entropies = T([ids]), T([values])
    mask, forks = T([[kind != "p" for kind in kinds]]), T([[kind == "f" for kind in kinds]])
    edges = T(ENTROPY_EDGES)
    counts = entropy_histogram(entropies, mask, edges)
    assert counts.sum() == mask.sum()
    for i, count in enumerate(counts.tolist()):
        upper = edges[i + 1] if i + 1 < len(edges) else torch.inf
        assert count == int(((entropies >= edges[i]) & (entropies < upper) & mask).sum())
    seen = {i: [(h, kind) for j, h, kind in drawn if j == i and kind != "p"] for i in set(ids)}
    times = {i: sum(kind == "f" for _, kind in rows) for i, rows in seen.items()}
    expected = sorted((i for i in seen if times[i]), key=lambda i: (-times[i], i))[:most]
    found = [column.tolist() for column in frequent_tokens(tokens, entropies, mask, forks, most)]
    assert found[:3] == [expected, [len(seen[i]) for i in expected], [times[i] for i in expected]]
    assert found[3] == pytest.approx([sum(h for h, _ in seen[i]) / len(seen[i]) for i in expected])
