"""Constructors of the block mask and what follows from the ids."""

import pytest
import torch

from kernels import BlockMask


def test_prefix_lm_sees_the_prefix_both_ways_and_the_rest_causally():
    assert BlockMask.prefix_lm(2, 2).visible()[0].int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]


def test_next_scale_has_a_block_a_scale():
    mask = BlockMask.next_scale(3, (1, 2), (1, 2))
    assert mask.q_block.tolist() == [[0] * 3 + [1] + [2] * 4 + [3] + [4] * 2]
    assert mask.kv_end().tolist() == [[3] * 3 + [4] + [8] * 4 + [9] + [11] * 2]


def test_suffix_queries_see_every_cached_valid_token():
    cached = torch.tensor([[0, 0, 5]], dtype=torch.int32)
    mask = BlockMask.suffix(cached, torch.tensor([[True, True, True], [True, False, True]]), (1, 2))
    assert mask.shape == (3, 6) and mask.q_block.tolist() == [[6, 7, 7]]
    assert mask.visible()[1].int().tolist() == [[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1]]
    assert mask.visible_pairs(2) == 4 + 6 + 6 + 3 + 5 + 5


def test_ids_that_fall_are_refused_by_name_and_place():
    ids = torch.tensor([[0, 1, 1], [0, 2, 1]], dtype=torch.int32)
    valid = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"q_block must not fall .* from 2 to 1 at token 2 of row 1"):
        BlockMask.square(ids, valid)
    with pytest.raises(ValueError, match="int32"):
        BlockMask.square(ids.long(), valid)
    with pytest.raises(ValueError, match=r"k_valid must be bool \(B, 3\)"):
        BlockMask(ids[:1], ids[:1], valid, valid[:, :2])
    with pytest.raises(ValueError, match="batch sizes"):
        BlockMask.square(ids[:1].expand(2, -1), valid.expand(3, -1))
    for make, match in (
        (lambda: BlockMask.from_lengths([2, -1]), "negative"),
        (lambda: BlockMask.prefix_lm(2, -1), "negative"),
        (lambda: BlockMask.next_scale(2, (1, -2)), "at least 1"),
        (lambda: BlockMask(ids[:1], ids[:1], valid, valid.to("meta")), "parts lie on cpu, meta"),
    ):
        with pytest.raises(ValueError, match=match):
            make()


@pytest.mark.parametrize(
    ("lengths", "valid", "layout"),
    [([3], None, "full"), ([2, 1], None, "blocks"), ([3], [[True, False, True]], "blocks"), ([0, 3], None, "full")],
)
def test_layout_is_full_only_when_every_query_sees_every_key(lengths, valid, layout):
    mask = BlockMask.from_lengths(lengths, None if valid is None else torch.tensor(valid))
    assert mask.layout == layout == ("full" if bool(mask.visible().all()) else "blocks")


def test_what_is_derived_is_computed_once():
    mask = BlockMask.from_lengths([2, 3])
    assert mask.kv_end() is mask.kv_end() and mask.visible() is mask.visible()
