"""Write checkpoints with random weights as the makers of FLUX.2 lay theirs out, with the names of their code."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from openklein.engine.autoencoder import AutoencoderConfig
from openklein.engine.transformer import TransformerConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def transformer(config: TransformerConfig, seed: int = 0) -> dict[str, Tensor]:
    return random_tensors(transformer_shapes(config), seed)


def autoencoder(config: AutoencoderConfig, seed: int = 0) -> dict[str, Tensor]:
    tensors = random_tensors(autoencoder_shapes(config), seed)
    return {**tensors, "bn.num_batches_tracked": torch.tensor(7)}


def in_fp8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the matrices of the blocks in fp8 with a scale for each tensor, and the scale its input is meant to have."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        result[name] = tensor
        if tensor.ndim == 2 and "_blocks." in name:
            scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            result[name] = (tensor / scale).to(torch.float8_e4m3fn)
            result[f"{name}_scale"] = scale
            result[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
    return result


def random_tensors(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Fill everything so that signals keep their size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes:
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            tensors[name] = noise / math.sqrt(noise[0].numel())
        elif name.endswith("running_var"):
            tensors[name] = 1 + 2 * noise.abs()
        else:
            tensors[name] = 0.3 * noise + (0 if name.endswith(("bias", "mean")) else 1)
    return tensors


def transformer_shapes(config: TransformerConfig) -> Shapes:
    hidden, mlp, head = config.hidden_size, config.mlp_size, config.head_dim
    yield "img_in.weight", (hidden, config.in_channels)
    yield "txt_in.weight", (hidden, config.joint_attention_dim)
    yield "time_in.in_layer.weight", (hidden, config.timestep_channels)
    yield "time_in.out_layer.weight", (hidden, hidden)
    yield "double_stream_modulation_img.lin.weight", (6 * hidden, hidden)
    yield "double_stream_modulation_txt.lin.weight", (6 * hidden, hidden)
    yield "single_stream_modulation.lin.weight", (3 * hidden, hidden)
    for i in range(config.num_layers):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            yield f"{block}_attn.qkv.weight", (3 * hidden, hidden)
            yield f"{block}_attn.norm.query_norm.scale", (head,)
            yield f"{block}_attn.norm.key_norm.scale", (head,)
            yield f"{block}_attn.proj.weight", (hidden, hidden)
            yield f"{block}_mlp.0.weight", (2 * mlp, hidden)
            yield f"{block}_mlp.2.weight", (hidden, mlp)
    for i in range(config.num_single_layers):
        yield f"single_blocks.{i}.linear1.weight", (3 * hidden + 2 * mlp, hidden)
        yield f"single_blocks.{i}.linear2.weight", (hidden, hidden + mlp)
        yield f"single_blocks.{i}.norm.query_norm.scale", (head,)
        yield f"single_blocks.{i}.norm.key_norm.scale", (head,)
    yield "final_layer.adaLN_modulation.1.weight", (2 * hidden, hidden)
    yield "final_layer.linear.weight", (config.in_channels, hidden)


def autoencoder_shapes(config: AutoencoderConfig) -> Shapes:
    z, widths = config.latent_channels, config.block_out_channels
    yield from layer("encoder.conv_in", (widths[0], config.in_channels, 3, 3))
    before = widths[0]
    for level, width in enumerate(widths):
        for i in range(config.layers_per_block):
            yield from residual_block(f"encoder.down.{level}.block.{i}", before, width)
            before = width
        if level < len(widths) - 1:
            yield from layer(f"encoder.down.{level}.downsample.conv", (width, width, 3, 3))
    yield from middle("encoder.mid", before)
    yield from layer("encoder.norm_out", (before,))
    yield from layer("encoder.conv_out", (2 * z, before, 3, 3))
    yield from layer("encoder.quant_conv", (2 * z, 2 * z, 1, 1))
    widths = config.decoder_block_out_channels or widths
    before = widths[-1]
    yield from layer("decoder.post_quant_conv", (z, z, 1, 1))
    yield from layer("decoder.conv_in", (before, z, 3, 3))
    yield from middle("decoder.mid", before)
    for level in reversed(range(len(widths))):  # counted from the finest, run from the coarsest
        for i in range(config.layers_per_block + 1):
            yield from residual_block(f"decoder.up.{level}.block.{i}", before, widths[level])
            before = widths[level]
        if level > 0:
            yield from layer(f"decoder.up.{level}.upsample.conv", (before, before, 3, 3))
    yield from layer("decoder.norm_out", (before,))
    yield from layer("decoder.conv_out", (config.in_channels, before, 3, 3))
    yield "bn.running_mean", (4 * z,)
    yield "bn.running_var", (4 * z,)


def layer(name: str, shape: tuple[int, ...]) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def residual_block(name: str, before: int, after: int) -> Shapes:
    yield from layer(f"{name}.norm1", (before,))
    yield from layer(f"{name}.conv1", (after, before, 3, 3))
    yield from layer(f"{name}.norm2", (after,))
    yield from layer(f"{name}.conv2", (after, after, 3, 3))
    if before != after:
        yield from layer(f"{name}.nin_shortcut", (after, before, 1, 1))


def middle(name: str, width: int) -> Shapes:
    yield from residual_block(f"{name}.block_1", width, width)
    yield from layer(f"{name}.attn_1.norm", (width,))
    for projection in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.attn_1.{projection}", (width, width, 1, 1))
    yield from residual_block(f"{name}.block_2", width, width)
