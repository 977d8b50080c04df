"""Say where a checkpoint has each parameter: under our names, or in the layout of the model's makers.

Our names are those of the diffusers folder. The single files of black-forest-labs name the same tensors otherwise, fuse
query, key and value of the double blocks, store the final modulation as (shift, scale), and count the decoder's levels
from the finest. Source: black-forest-labs/flux2 `model.py` and `autoencoder.py`.
"""

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

BUNDLE_PREFIX: Final = "model.diffusion_model."  # before the names in files that other programs have exported


@dataclass(frozen=True, slots=True)
class Source:
    """The tensor of a file that holds a parameter, and what of it."""

    key: str
    part: int = 0  # which of `parts` equal ranges of rows
    parts: int = 1
    has_swapped_halves: bool = False
    is_convolution: bool = False  # stored as a 1x1 convolution, (out, in, 1, 1) for (out, in)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape in the file of a parameter of this shape."""
        if self.parts > 1:
            shape = (self.parts * shape[0], *shape[1:])
        return (*shape, 1, 1) if self.is_convolution else shape

    def take(self, stored: Tensor) -> Tensor:
        """Make the parameter of what is stored; a view where nothing has to move."""
        tensor = stored.chunk(self.parts)[self.part] if self.parts > 1 else stored
        if self.is_convolution:
            tensor = tensor[..., 0, 0]
        return torch.cat(tensor.chunk(2)[::-1]) if self.has_swapped_halves else tensor


TRANSFORMER: Final[dict[str, Source]] = {  # a star stands for the number of the block
    "x_embedder.weight": Source("img_in.weight"),
    "context_embedder.weight": Source("txt_in.weight"),
    "time_guidance_embed.timestep_embedder.linear_1.weight": Source("time_in.in_layer.weight"),
    "time_guidance_embed.timestep_embedder.linear_2.weight": Source("time_in.out_layer.weight"),
    "double_stream_modulation_img.linear.weight": Source("double_stream_modulation_img.lin.weight"),
    "double_stream_modulation_txt.linear.weight": Source("double_stream_modulation_txt.lin.weight"),
    "single_stream_modulation.linear.weight": Source("single_stream_modulation.lin.weight"),
    "transformer_blocks.*.attn.to_q.weight": Source("double_blocks.*.img_attn.qkv.weight", 0, 3),
    "transformer_blocks.*.attn.to_k.weight": Source("double_blocks.*.img_attn.qkv.weight", 1, 3),
    "transformer_blocks.*.attn.to_v.weight": Source("double_blocks.*.img_attn.qkv.weight", 2, 3),
    "transformer_blocks.*.attn.add_q_proj.weight": Source("double_blocks.*.txt_attn.qkv.weight", 0, 3),
    "transformer_blocks.*.attn.add_k_proj.weight": Source("double_blocks.*.txt_attn.qkv.weight", 1, 3),
    "transformer_blocks.*.attn.add_v_proj.weight": Source("double_blocks.*.txt_attn.qkv.weight", 2, 3),
    "transformer_blocks.*.attn.norm_q.weight": Source("double_blocks.*.img_attn.norm.query_norm.scale"),
    "transformer_blocks.*.attn.norm_k.weight": Source("double_blocks.*.img_attn.norm.key_norm.scale"),
    "transformer_blocks.*.attn.norm_added_q.weight": Source("double_blocks.*.txt_attn.norm.query_norm.scale"),
    "transformer_blocks.*.attn.norm_added_k.weight": Source("double_blocks.*.txt_attn.norm.key_norm.scale"),
    "transformer_blocks.*.attn.to_out.0.weight": Source("double_blocks.*.img_attn.proj.weight"),
    "transformer_blocks.*.attn.to_add_out.weight": Source("double_blocks.*.txt_attn.proj.weight"),
    "transformer_blocks.*.ff.linear_in.weight": Source("double_blocks.*.img_mlp.0.weight"),
    "transformer_blocks.*.ff.linear_out.weight": Source("double_blocks.*.img_mlp.2.weight"),
    "transformer_blocks.*.ff_context.linear_in.weight": Source("double_blocks.*.txt_mlp.0.weight"),
    "transformer_blocks.*.ff_context.linear_out.weight": Source("double_blocks.*.txt_mlp.2.weight"),
    "single_transformer_blocks.*.attn.to_qkv_mlp_proj.weight": Source("single_blocks.*.linear1.weight"),
    "single_transformer_blocks.*.attn.to_out.weight": Source("single_blocks.*.linear2.weight"),
    "single_transformer_blocks.*.attn.norm_q.weight": Source("single_blocks.*.norm.query_norm.scale"),
    "single_transformer_blocks.*.attn.norm_k.weight": Source("single_blocks.*.norm.key_norm.scale"),
    "norm_out.linear.weight": Source("final_layer.adaLN_modulation.1.weight", has_swapped_halves=True),
    "proj_out.weight": Source("final_layer.linear.weight"),
}

AUTOENCODER: Final = [  # what to replace in a name, in this order
    (r"^quant_conv", "encoder.quant_conv"),
    (r"^post_quant_conv", "decoder.post_quant_conv"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"(down|up)_blocks\.(\d+)\.resnets", r"\1.\2.block"),
    (r"(down|up)_blocks\.(\d+)\.\w+samplers\.0", r"\1.\2.\1sample"),
]


def locate(names: Iterable[str], keys: Set[str]) -> dict[str, Source]:
    """Say where a file with these keys has the parameters of these names, in the layout that the keys show."""
    prefix = BUNDLE_PREFIX if any(key.startswith(BUNDLE_PREFIX) for key in keys) else ""
    if f"{prefix}single_stream_modulation.lin.weight" in keys:
        sources = {name: makers_transformer(name) for name in names}
    elif "encoder.quant_conv.weight" in keys:
        sources = makers_autoencoder(list(names))
    else:
        sources = {name: Source(name) for name in names}
    return {name: replace(source, key=prefix + source.key) for name, source in sources.items()}


def makers_transformer(name: str) -> Source:
    block = re.search(r"_blocks\.(\d+)\.", name)
    source = TRANSFORMER.get(re.sub(r"_blocks\.\d+\.", "_blocks.*.", name), Source(name))
    return replace(source, key=source.key.replace("*", block[1])) if block else source


def makers_autoencoder(names: list[str]) -> dict[str, Source]:
    levels = len({match[1] for name in names if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))})
    sources = {}
    for name in names:
        key = name
        for pattern, replacement in AUTOENCODER:
            key = re.sub(pattern, replacement, key)
        key = re.sub(r"^(decoder\.up)\.(\d+)", lambda match: f"{match[1]}.{levels - 1 - int(match[2])}", key)
        is_convolution = "mid.attn_1" in key and not key.endswith(("norm.weight", "bias"))
        sources[name] = Source(key, is_convolution=is_convolution)
    return sources
