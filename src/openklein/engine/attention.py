"""Attend: PyTorch's own kernel, but for long sequences in bfloat16 on a CPU, where matrix products are far faster."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

LONG: Final = 512  # tokens from which the products pay
ROWS: Final = 512  # queries at a time, so that their scores stay in the cache


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let every token see every token; (B, S, H, D) to (B, S, H * D)."""
    is_long = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[1] >= LONG
    if is_long and not torch.is_grad_enabled():
        out: Tensor = attention_by_products(query, key, value)
        return out
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


@torch.library.custom_op("openklein::attention_by_products", mutates_args=())
def attention_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend head by head and some rows at a time; (B, S, H, D) to (B, S, H * D).

    A product rounds its scores to bfloat16. A second one gives what that took away, to first order of the exponential:
    exp(s + r) = exp(s) (1 + r), where r is below s / 256. So scores count as in float32, at a third more work.
    """
    batch, length, heads, dim = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    buffers = [query.new_empty(ROWS, length) for _ in range(2)]
    for sample in range(batch):
        for head in range(heads):
            columns, values = key[sample, :, head].t(), value[sample, :, head]
            for start in range(0, length, ROWS):
                rows = query[sample, start : start + ROWS, head]
                scores, weights = (buffer[: len(rows)] for buffer in buffers)
                torch.addmm(scores, rows, columns, beta=0, alpha=dim**-0.5, out=scores)
                torch.softmax(scores, dim=-1, out=weights)
                scores.addmm_(rows, columns, beta=-1, alpha=dim**-0.5)  # what rounding took away
                weights.addcmul_(weights, scores)
                out[sample, start : start + ROWS, head] = weights @ values / weights.sum(dim=-1, keepdim=True)
    return out.flatten(2)


@attention_by_products.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format).flatten(2)
