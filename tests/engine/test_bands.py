"""Decoding in bands against decoding the whole, which `tests/parity` holds to diffusers."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from openklein.engine import bands
from openklein.engine.autoencoder import Autoencoder, AutoencoderConfig
from openklein.engine.bands import cut, is_worth_cutting, statistics
from tests.parity.compare import assert_far, assert_same, randomize
from tests.stand_in_gpu import CPU, PeakBytes

CONFIG = AutoencoderConfig(block_out_channels=(8, 16, 24), latent_channels=4, norm_num_groups=4)
SMALL_DECODER = (96, 192, 384, 384)
SIZES = [(4, 6), (5, 7), (9, 4), (1, 1)]  # in tokens; the second and third leave a last band of fewer rows


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    module = Autoencoder(CONFIG).eval()
    randomize(module)
    return module


@torch.no_grad()
def decode(autoencoder: Autoencoder, height: int, width: int, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return autoencoder.decode(torch.randn(1, 16, height, width, generator=generator))


@pytest.fixture
def everything_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "LARGE", 0)
    monkeypatch.setattr(bands, "COUNT", 4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_there_are_no_seams(autoencoder: Autoencoder, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode(autoencoder, *size)
    monkeypatch.setattr(bands, "LARGE", 0)
    for count in (1, 3, 32):
        monkeypatch.setattr(bands, "COUNT", count)
        assert_same(decode(autoencoder, *size), whole, 1e-6)


@pytest.mark.usefixtures("everything_is_cut")
def test_a_band_normalised_by_itself_is_noticed(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode(autoencoder, 4, 6)
    monkeypatch.setattr(bands, "statistics", lambda picture, groups: statistics(picture[:1], groups))
    assert_far(decode(autoencoder, 4, 6), right)


@pytest.mark.usefixtures("everything_is_cut")
def test_in_bfloat16_it_is_within_rounding(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = Autoencoder(CONFIG).eval()
    rounded.load_state_dict(autoencoder.state_dict())
    rounded.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    latents = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        in_bands = rounded.decode(latents).float()
        monkeypatch.setattr(bands, "LARGE", float("inf"))
        whole = rounded.decode(latents).float()
    assert 20 * torch.log10(2 / (in_bands - whole).square().mean().sqrt()) > 45


def test_statistics_are_exact_far_from_zero() -> None:
    picture = 100 + torch.randn(1, 6, 50, 40, generator=torch.Generator().manual_seed(1))
    mean, variance = statistics(cut(picture), groups=3)
    groups = torch.unflatten(picture.double(), 1, (3, 2))
    exact_variance, exact_mean = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
    assert_same(mean, exact_mean.repeat_interleave(2).float(), 1e-6)
    assert_same(variance, exact_variance.repeat_interleave(2).float(), 1e-3)


@pytest.mark.parametrize("decoder", [None, SMALL_DECODER], ids=["full", "small"])
def test_a_megapixel_takes_half_the_memory(
    decoder: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch, bfloat16: None
) -> None:
    def peak() -> int:
        with FakeTensorMode(), torch.no_grad():
            module = Autoencoder(AutoencoderConfig(decoder_block_out_channels=decoder))
            with PeakBytes(CPU, *module.state_dict().values()) as memory:
                module.decode(torch.empty(1, 128, 64, 64))
        return int(memory.peak)

    in_bands = peak()
    monkeypatch.setattr(bands, "LARGE", float("inf"))
    assert in_bands < 0.5 * peak()


@pytest.fixture
def bfloat16() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_only_one_large_picture_on_a_cpu_is_cut() -> None:
    large = (1, 512, 128, 128)
    assert is_worth_cutting(torch.empty(large))
    assert not is_worth_cutting(torch.empty(large, device="meta"))
    assert not is_worth_cutting(torch.empty(2, 512, 128, 128))
    assert not is_worth_cutting(torch.empty(1, 512, 16, 16))
