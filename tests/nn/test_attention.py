"""Both kernels of attention agree."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flowloom.nn.attention import attention, rotate, rotation_table


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("lengths", [None, (3, 11)])
def test_bfloat16_on_a_cpu_is_the_same_attention(lengths: tuple[int, int] | None, is_autocast: bool):
    draw = torch.Generator().manual_seed(0)
    dtype = torch.float32 if is_autocast else torch.bfloat16
    heads = [torch.randn(2, 3, 11, 8, generator=draw).bfloat16().to(dtype) for _ in range(3)]
    rotation = rotation_table(torch.randint(0, 50, (11, 2), generator=draw), (4, 4), 10_000)
    mask = None
    if lengths:
        mask = (torch.arange(11) < torch.tensor(lengths)[:, None])[:, None, None]
    upstream = torch.randn(2, 11, 24, generator=draw)

    def results(q: Tensor, k: Tensor, v: Tensor, expected: bool) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        if expected:
            q, k = (rotate(x, rotation) for x in leaves[:2])
            out = scaled_dot_product_attention(q, k, leaves[2], attn_mask=mask).transpose(1, 2).flatten(2)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
                out = attention(*leaves, rotation, mask)  # pyright: ignore[reportCallIssue]
            assert out.dtype == torch.bfloat16
        grads = torch.autograd.grad(out.float(), leaves, upstream)
        return [out.detach().float(), *(grad.float() for grad in grads)]

    exact = results(*(x.float() for x in heads), expected=True)
    for found, wanted in zip(results(*heads, expected=False), exact, strict=True):
        assert (found - wanted).norm() < 0.01 * wanted.norm()
