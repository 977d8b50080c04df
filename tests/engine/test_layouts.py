"""The makers' names at the official sizes; tests/parity holds the tensors to what diffusers makes of them."""

import pytest
import torch
from torch import nn

from openklein.engine.autoencoder import Autoencoder
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.layouts import BUNDLE_PREFIX, Source, locate
from openklein.engine.text_encoder import TextEncoder
from openklein.engine.transformer import FlowTransformer
from tests.parity.makers import autoencoder_shapes, transformer_shapes


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", BUNDLE_PREFIX])
def test_every_tensor_of_the_single_file_is_used(prefix: str) -> None:
    with torch.device("meta"):
        names = shapes_of(FlowTransformer(KLEIN_4B.transformer))
    stored = {prefix + key: shape for key, shape in transformer_shapes(KLEIN_4B.transformer)}
    sources = locate(names, stored.keys())
    assert {source.key: source.stored_shape(names[name]) for name, source in sources.items()} == stored


@pytest.mark.parametrize("config", [KLEIN_4B.autoencoder, KLEIN_4B.small_autoencoder], ids=["full", "small"])
def test_every_tensor_of_the_autoencoders_file_is_used(config: object) -> None:
    with torch.device("meta"):
        names = shapes_of(Autoencoder(config))  # type: ignore[arg-type]
    stored = {**dict(autoencoder_shapes(config)), "bn.num_batches_tracked": ()}  # type: ignore[arg-type]
    sources = locate(names, stored.keys())
    assert {source.key: source.stored_shape(names[name]) for name, source in sources.items()} == stored


def test_the_diffusers_layout_is_ours() -> None:
    assert locate(["a.weight"], {"a.weight", "b.weight"}) == {"a.weight": Source("a.weight")}


def test_a_file_of_another_part_is_looked_through_without_a_fault() -> None:
    with torch.device("meta"):
        names = shapes_of(TextEncoder(KLEIN_4B.text_encoder))
    for shapes in (transformer_shapes(KLEIN_4B.transformer), autoencoder_shapes(KLEIN_4B.autoencoder)):  # type: ignore[arg-type]
        keys = dict(shapes).keys()
        assert not {source.key for source in locate(names, keys).values()} & keys


def test_taking_moves_nothing_that_can_stay() -> None:
    stored = torch.arange(24.0).reshape(6, 4)
    second = Source("qkv", 1, 3).take(stored)
    assert torch.equal(second, stored[2:4])
    assert second.data_ptr() == stored[2:].data_ptr()
    assert torch.equal(Source("final", has_swapped_halves=True).take(stored), stored[[3, 4, 5, 0, 1, 2]])
    assert Source("conv", is_convolution=True).take(stored[..., None, None]).shape == (6, 4)
