"""FLUX.2's autoencoder against diffusers' `AutoencoderKLFlux2`."""

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from torch import Tensor, nn

from openklein.contract import RESOLUTIONS
from openklein.engine import autoencoder
from openklein.engine.autoencoder import Autoencoder, AutoencoderConfig
from openklein.engine.images import to_image, to_tensor
from tests.parity.both_pipelines import our_pipeline, reference_pipeline
from tests.parity.compare import assert_far, assert_same, randomize

CONFIGS = {
    "three levels": AutoencoderConfig(block_out_channels=(8, 16, 24), latent_channels=4, norm_num_groups=4),
    "a smaller decoder": AutoencoderConfig(
        block_out_channels=(8, 16), decoder_block_out_channels=(4, 12), latent_channels=4, norm_num_groups=4
    ),
    "one layer per block": AutoencoderConfig(
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=2, norm_num_groups=2, batch_norm_eps=0.1
    ),
}
CONFIG = CONFIGS["three levels"]


def reference_for(config: AutoencoderConfig) -> AutoencoderKLFlux2:
    levels = len(config.block_out_channels)
    reference = AutoencoderKLFlux2(
        block_out_channels=config.block_out_channels,
        decoder_block_out_channels=config.decoder_block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        batch_norm_eps=config.batch_norm_eps,
    ).eval()
    randomize(reference)
    return reference


def pair(config: AutoencoderConfig = CONFIG) -> tuple[Autoencoder, AutoencoderKLFlux2]:
    reference = reference_for(config)
    ours = Autoencoder(config).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def statistics(reference: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    mean = reference.bn.running_mean[:, None, None]
    return mean, torch.sqrt(reference.bn.running_var[:, None, None] + reference.config.batch_norm_eps)


def reference_encode(reference: AutoencoderKLFlux2, image: Tensor) -> Tensor:
    mean, std = statistics(reference)
    packed: Tensor = Flux2KleinPipeline._patchify_latents(reference.encode(image).latent_dist.mode())
    return (packed - mean) / std


def reference_decode(reference: AutoencoderKLFlux2, latents: Tensor) -> Tensor:
    mean, std = statistics(reference)
    image: Tensor = reference.decode(Flux2KleinPipeline._unpatchify_latents(latents * std + mean)).sample
    return image.clamp(-1, 1)


def picture() -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents(config: AutoencoderConfig = CONFIG) -> Tensor:
    shape = (2, 4 * config.latent_channels, 4, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_encode_and_decode(config: AutoencoderConfig) -> None:
    ours, reference = pair(config)
    with torch.no_grad():
        assert_same(ours.encode(picture()), reference_encode(reference, picture()))
        expected = reference_decode(reference, latents(config))
        assert expected.std() > 0.2
        assert_same(ours.decode(latents(config)), expected)


@pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
def test_every_output_size(size: tuple[int, int]) -> None:
    """In the memory layout that the pipeline gives it: channels last are less exact in large pictures."""
    ours, reference = our_pipeline()._autoencoder, reference_pipeline().vae
    width, height = size
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, height // 16, width // 16, generator=generator)
    with torch.no_grad():
        expected = reference_decode(reference, latents)
        assert expected.std() > 0.2
        assert_same(ours.decode(latents), expected)
        image = to_tensor(to_image(expected[0]))[None]
        assert_same(ours.encode(image), reference_encode(reference, image))


def test_the_state_dict_is_the_checkpoints() -> None:
    ours, reference = pair()
    reference.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        assert_same(ours.decode(latents()), reference_decode(reference, latents()))


def test_the_official_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        ours, reference = Autoencoder(AutoencoderConfig()), AutoencoderKLFlux2()
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    assert sum(parameter.numel() for parameter in ours.parameters()) == 84_046_115


def test_a_token_is_16_pixels_wide() -> None:
    config = AutoencoderConfig(
        block_out_channels=(2, 2, 2, 2), layers_per_block=1, latent_channels=32, norm_num_groups=1
    )
    ours = Autoencoder(config).eval()
    with torch.no_grad():
        encoded = ours.encode(torch.zeros(1, 3, 64, 96))
        assert encoded.shape == (1, 128, 4, 6)
        assert ours.decode(encoded).shape == (1, 3, 64, 96)


class TestBugsAreSeen:
    """Each of these has been made somewhere; the comparison must notice."""

    @pytest.mark.parametrize("bug", ["no normalisation", "variance for mean", "wrong eps"])
    def test_in_the_normaliser(self, bug: str) -> None:
        ours, reference = pair()
        expected = reference_encode(reference, picture())
        mean, variance = ours.bn.running_mean, ours.bn.running_var
        assert mean is not None and variance is not None
        if bug == "no normalisation":
            mean.zero_()
            variance.fill_(1)
        elif bug == "variance for mean":
            mean.copy_(variance)
        else:
            ours.bn.eps = 0.1
        with torch.no_grad():
            assert_far(ours.encode(picture()), expected)

    def test_in_the_group_norms(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(autoencoder, "GROUP_NORM_EPS", 1e-2)
        ours, reference = pair()
        with torch.no_grad():
            assert_far(ours.decode(latents()), reference_decode(reference, latents()))

    def test_in_the_padding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def pad_both_sides(self: autoencoder.Downsample, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1)

        monkeypatch.setattr(autoencoder.Downsample, "forward", pad_both_sides)
        ours, reference = pair()
        with torch.no_grad():
            assert_far(ours.encode(picture()), reference_encode(reference, picture()))

    def test_in_the_channel_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fold_positions_first(latents: Tensor) -> Tensor:
            b, c, h, w = latents.shape
            return (
                latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
            )

        monkeypatch.setattr(autoencoder, "patchify", fold_positions_first)
        ours, reference = pair()
        with torch.no_grad():
            assert_far(ours.encode(picture()), reference_encode(reference, picture()))

    def test_in_the_attention(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(autoencoder.Attention, "forward", lambda self, x: x)
        ours, reference = pair()
        with torch.no_grad():
            assert_far(ours.decode(latents()), reference_decode(reference, latents()))

    def test_at_an_output_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(autoencoder.Attention, "forward", lambda self, x: x)
        ours, reference = our_pipeline()._autoencoder, reference_pipeline().vae
        large = torch.randn(1, 16, 48, 84, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = reference_decode(reference, large)
            assert_far(ours.decode(large), expected)
            image = to_tensor(to_image(expected[0]))[None]
            assert_far(ours.encode(image), reference_encode(reference, image))
