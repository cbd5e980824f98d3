"""Planes become tokens and planes again; positions say where a token was."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flowloom.nn.patches import image_ids, pack, unpack

SIDES = st.integers(1, 6).map(lambda n: 2 * n)


@given(st.integers(1, 3), st.integers(1, 4), SIDES, SIDES)
def test_unpack_is_the_inverse_of_pack(samples: int, channels: int, h: int, w: int):
    planes = torch.arange(samples * channels * h * w).reshape(samples, channels, h, w)
    assert torch.equal(unpack(pack(planes), h, w), planes)


@given(st.integers(1, 3), SIDES, SIDES)
def test_each_token_is_its_patch_channel_by_channel(channels: int, h: int, w: int):
    planes = torch.arange(channels * h * w).reshape(1, channels, h, w)
    tokens, ids = pack(planes)[0], image_ids(h, w)
    assert len(tokens) == len(ids) == h * w // 4
    for token, (zero, row, column) in zip(tokens, ids.int().tolist(), strict=True):
        patch = planes[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert zero == 0
        assert torch.equal(token, patch.flatten())


def test_tokens_go_row_by_row():
    assert image_ids(4, 6).tolist() == [[0, r, c] for r in range(2) for c in range(3)]
