import pytest
import torch
from torch import Tensor

from openklein.engine.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from tests.parity.compare import randomize
from tests.tiny import TINY_CARD


@pytest.fixture
def autoencoder() -> MiniAutoencoder:
    assert isinstance(TINY_CARD.autoencoder, MiniAutoencoderConfig)
    model = MiniAutoencoder(TINY_CARD.autoencoder).eval().requires_grad_(False)
    randomize(model)
    return model


def pictures(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [(128, 128), (256, 384)])
def test_a_token_is_128_pixels_wide(autoencoder: MiniAutoencoder, size: tuple[int, int]) -> None:
    latents = autoencoder.encode(pictures(*size))
    assert latents.shape == (2, 16, size[0] // 128, size[1] // 128)
    assert autoencoder.decode(latents).shape == (2, 3, *size)


def test_pictures_stay_in_range(autoencoder: MiniAutoencoder) -> None:
    decoded = autoencoder.decode(100 * torch.randn(1, 16, 2, 2))
    assert decoded.min() == -1 and decoded.max() == 1


def test_the_running_statistics_normalise(autoencoder: MiniAutoencoder) -> None:
    autoencoder.bn.reset_running_stats()
    plain = autoencoder.encode(pictures(256, 256))
    mean, variance = autoencoder.bn.running_mean, autoencoder.bn.running_var
    assert mean is not None and variance is not None
    mean.fill_(0.25)
    variance.fill_(4 - autoencoder.bn.eps)
    assert torch.allclose(autoencoder.encode(pictures(256, 256)), (plain * (1 + 1e-4) ** 0.5 - 0.25) / 2, atol=1e-6)


def test_decode_undoes_the_normalisation(autoencoder: MiniAutoencoder) -> None:
    latents = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    expected = autoencoder.decode(latents)
    mean, variance = autoencoder.bn.running_mean, autoencoder.bn.running_var
    assert mean is not None and variance is not None
    scaled = latents * torch.sqrt(variance + autoencoder.bn.eps)[:, None, None] + mean[:, None, None]
    autoencoder.bn.reset_running_stats()
    assert torch.allclose(autoencoder.decode(scaled / (1 + 1e-4) ** 0.5), expected, atol=1e-5)


def test_bfloat16_is_enough(autoencoder: MiniAutoencoder) -> None:
    latents = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    exact = autoencoder.decode(latents)
    rough = autoencoder.to(torch.bfloat16).decode(latents.to(torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()
