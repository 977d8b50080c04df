"""Read the prompt: a tokenizer with the chat template around it, and Qwen3 up to the last layer used.

Parameter names are those of the Qwen3 checkpoint. Hidden state k is the output of layer k; the final norm,
the later layers and the language head are never built. Source: transformers `modeling_qwen3.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from openklein.contract import MAX_PROMPT_TOKENS
from openklein.errors import PromptTooLong

SHORT: Final = (64, 128, 192)  # numbers of keys for which PyTorch's attention rounds as it does for 512


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """Sizes of a text encoder, and how a prompt becomes its tokens."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    feature_layers: tuple[int, ...]  # whose outputs are concatenated, ascending
    prefix: str  # chat template before and after the prompt
    suffix: str
    pad_token: str
    pad_multiple: int  # token counts are padded up to a multiple of this
    rope_theta: float = 1e6
    eps: float = 1e-6

    @property
    def feature_size(self) -> int:
        return self.hidden_size * len(self.feature_layers)


class PromptTokenizer:
    """Turn prompts into token ids; special-token strings are parsed as the reference tokenizer does.

    Raises ValueError for the tokenizer of another model.
    """

    def __init__(self, tokenizer: Tokenizer, config: TextEncoderConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        pad = tokenizer.token_to_id(config.pad_token)
        if pad is None or tokenizer.get_vocab_size() > config.vocab_size:
            raise ValueError(f"it lacks {config.pad_token} or has more than {config.vocab_size} tokens")
        self._pad = pad
        self._template_count = len(tokenizer.encode(config.prefix + config.suffix).ids)
        self._longest_token = max(map(len, tokenizer.get_vocab()))

    def check(self, prompt: str) -> None:
        """Raise `PromptTooLong` for prompts of more than 500 tokens, not counting the template."""
        least = len(prompt) // self._longest_token  # known without counting, which takes minutes for some megabytes
        if least > MAX_PROMPT_TOKENS:
            raise PromptTooLong(f"prompt has {least} tokens or more; at most {MAX_PROMPT_TOKENS} are allowed")
        count = len(self._tokenize(prompt)) - self._template_count  # in place: tokens may join at its ends
        if count > MAX_PROMPT_TOKENS:
            raise PromptTooLong(f"prompt has {count} tokens; at most {MAX_PROMPT_TOKENS} are allowed")

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Give token ids, int64 (B, T), and which of them are not padding, bool (B, T)."""
        rows = [self._tokenize(prompt) for prompt in prompts]
        multiple = self._config.pad_multiple
        length = multiple * -(-max(map(len, rows)) // multiple)
        ids = torch.full((len(rows), length), self._pad)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def _tokenize(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self._config.prefix + prompt + self._config.suffix).ids
        return ids


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i of x (B, H, T, D) with channel i + D/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class RMSNorm(nn.RMSNorm):
    """Round before the weight comes in, not once at the end: in bfloat16 that makes a percent of difference."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x, self.normalized_shape, eps=self.eps)


class Attention(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=config.eps)
        self.k_norm = RMSNorm(config.head_dim, eps=config.eps)

    def forward(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        seen = mask.shape[-1]  # tokens that any other attends to, the first ones
        seen_x, seen_rotary = x[:, :seen].contiguous(), (rotary[0][:seen], rotary[1][:seen])
        query, key, value = (
            torch.unflatten(projection(tokens), -1, (-1, self.head_dim))
            for projection, tokens in ((self.q_proj, x), (self.k_proj, seen_x), (self.v_proj, seen_x))
        )
        query = rotate_halves(self.q_norm(query).transpose(1, 2), *rotary)
        key = rotate_halves(self.k_norm(key).transpose(1, 2), *seen_rotary)
        mixed = F.scaled_dot_product_attention(
            query, key, value.transpose(1, 2), attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), mask, rotary)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


def count_keys(mask: Tensor) -> int:
    """Say how many tokens of (B, T) get keys and values: all real ones, rounded up to what rounds as T does."""
    real, length = int(mask.any(dim=0).nonzero()[-1]) + 1, mask.shape[1]
    return min(length, next((count for count in SHORT if count >= real), length))


class TextEncoder(nn.Module):
    """Map token ids to the concatenated hidden states of a few layers."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        layers = (DecoderLayer(config) for _ in range(config.feature_layers[-1]))
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(layers),
            }
        )

    @property
    def embedding(self) -> nn.Embedding:
        embedding = self.model["embed_tokens"]
        assert isinstance(embedding, nn.Embedding)
        return embedding

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.model["layers"]
        assert isinstance(layers, nn.ModuleList)
        return layers

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map ids (B, T) and mask (B, T), true for real tokens, both on the CPU, to features (B, T, feature_size).

        Padding is never attended to, so after a short prompt most of it gets no keys and values, but its own features
        are kept: the transformer reads them all.
        """
        length = ids.shape[1]
        seen = count_keys(mask)
        x = self.embedding(ids.to(self.embedding.weight.device))
        causal = torch.ones(length, seen, dtype=torch.bool).tril()
        visible = (causal & mask[:, None, None, :seen]).to(x.device)  # (B, 1, T, seen)
        rotary = self._rotary(length, x)
        features = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, visible, rotary)
            if number in self.config.feature_layers:
                features.append(x)
        return torch.cat(features, dim=-1)

    def _rotary(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        dim = self.config.head_dim
        exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=like.device) / dim
        omega = 1 / self.config.rope_theta**exponent  # in this order: 1 ulp less of difference to Qwen3
        angle = torch.arange(length, dtype=torch.float32, device=like.device)[:, None] * omega
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)
