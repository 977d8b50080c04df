from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from openklein.contract import MAX_REFERENCES
from openklein.engine.catalog import CATALOG, KLEIN_4B, ModelCard
from openklein.engine.memory import available_bytes, container_bytes, weight_bytes, working_bytes
from openklein.engine.text_encoder import TextEncoder
from openklein.engine.transformer import FlowTransformer
from openklein.engine.weights import Modules, empty_modules, make_autoencoder
from tests.stand_in_gpu import CPU, PeakBytes


def test_weights_are_counted_in_their_final_dtype() -> None:
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(10, 3), torch.nn.BatchNorm2d(5, affine=False))
        module.register_buffer("quantised", torch.empty(7, dtype=torch.float8_e4m3fn))
    floats, counters = 10 * 3 + 3 + 2 * 5, 1
    assert weight_bytes(module, torch.bfloat16) == 2 * floats + 8 * counters + 7
    assert weight_bytes(module, torch.float32) == 4 * floats + 8 * counters + 7


def test_the_weights_of_the_4b_are_those_of_the_published_files() -> None:
    text_encoder, transformer, autoencoder = empty_modules(KLEIN_4B, KLEIN_4B.autoencoder)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 3_875_544_576
    assert weight_bytes(transformer, torch.bfloat16) / 1e9 == pytest.approx(7.75, abs=0.005)
    assert weight_bytes(autoencoder, torch.bfloat16) / 1e6 == pytest.approx(168, abs=1)
    unused = 9 * sum(parameter.numel() for parameter in text_encoder.layers[0].parameters()) + 2560  # and a last norm
    assert (weight_bytes(text_encoder, torch.bfloat16) + 2 * unused) / 1e9 == pytest.approx(8.05, abs=0.01)


class TestWorkingBytes:
    """Compared with what the parts themselves take, without numbers: fake tensors know their sizes and nothing else."""

    @pytest.fixture(autouse=True)
    def bfloat16(self) -> Iterator[None]:
        torch.set_default_dtype(torch.bfloat16)
        yield
        torch.set_default_dtype(torch.float32)

    @pytest.mark.parametrize("card", CATALOG.values(), ids=CATALOG)
    def test_they_bound_the_largest_request_closely(self, card: ModelCard) -> None:
        measured = self.largest_peak(card)
        assert measured <= working_bytes(card, torch.bfloat16) <= 1.2 * measured

    @staticmethod
    def largest_peak(card: ModelCard) -> int:
        samples, side = 1 if card.guidance == 1 else 2, 1024 // card.token_px
        image_tokens = (1 + MAX_REFERENCES) * side**2
        in_channels, joint = card.transformer.in_channels, card.transformer.joint_attention_dim
        with (
            FakeTensorMode(),
            torch.no_grad(),
            patch("openklein.engine.text_encoder.count_keys", lambda mask: mask.shape[1]),
        ):
            text_encoder, transformer, autoencoder = shallow_modules(card)
            rotary = transformer.rotary(torch.zeros(512 + image_tokens, 4, dtype=torch.int64))
            ids, mask = torch.zeros(samples, 512, dtype=torch.int64), torch.ones(samples, 512, dtype=torch.bool)
            image, text = torch.empty(samples, image_tokens, in_channels), torch.empty(samples, 512, joint)
            latents, picture = torch.empty(1, in_channels, side, side), torch.empty(1, 3, 1024, 1024)
            return max(
                peak_of(text_encoder, lambda: text_encoder(ids, mask)),
                peak_of(transformer, lambda: transformer(image, text, torch.empty(samples), rotary)),
                peak_of(autoencoder, lambda: autoencoder.decode(latents)),
                peak_of(autoencoder, lambda: autoencoder.encode(picture)),
            )


def shallow_modules(card: ModelCard) -> Modules:
    """Make modules as wide as the card's, of few blocks."""
    return (
        TextEncoder(replace(card.text_encoder, vocab_size=10)),
        FlowTransformer(replace(card.transformer, num_layers=1, num_single_layers=2)),
        make_autoencoder(card.autoencoder),
    )


def peak_of(module: nn.Module, work: Callable[[], Tensor]) -> int:
    with PeakBytes(CPU, *module.state_dict().values()) as memory:
        work()
    return int(memory.peak)


def test_this_machine_has_some() -> None:
    assert 2**24 < available_bytes(torch.device("cpu")) < 2**60


@pytest.mark.parametrize(
    ("limit", "left"), [("max", float("inf")), ("8000000000", 8_000_000_000 - 3_000_000_000 + 1_000_000_000)]
)
def test_the_limit_of_a_container_counts_but_cached_files_do_not(tmp_path: Path, limit: str, left: float) -> None:
    assert container_bytes(tmp_path) == float("inf")  # no such files outside of one
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1900000000\ninactive_file 1000000000\nactive_file 100000000\n")
    assert container_bytes(tmp_path) == left
