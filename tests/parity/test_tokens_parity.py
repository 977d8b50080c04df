"""Packing and position ids against the helpers of diffusers' `Flux2KleinPipeline`."""

import pytest
import torch
from diffusers import Flux2KleinPipeline

from openklein.engine import tokens
from openklein.engine.tokens import image_ids, pack, patchify, reference_ids, text_ids, unpack, unpatchify
from tests.parity.compare import assert_far

GRIDS = [(4, 6), (3, 3), (1, 7), (5, 2)]  # of references of different sizes


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@pytest.mark.parametrize("length", [1, 7, 512])
def test_text_ids(length: int) -> None:
    assert torch.equal(text_ids(length), Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, length, 2))[0])


@pytest.mark.parametrize("grid", [(1, 1), (48, 84), (2, 5)])
def test_target_ids(grid: tuple[int, int]) -> None:
    assert torch.equal(image_ids(*grid), Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 2, *grid))[0])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_reference_ids(count: int) -> None:
    latents = [torch.zeros(1, 2, *grid) for grid in GRIDS[:count]]
    expected = Flux2KleinPipeline._prepare_image_ids(latents)[0]
    assert torch.equal(reference_ids(GRIDS[:count]), expected)
    assert expected[:, 0].unique().tolist() == [10 * (k + 1) for k in range(count)]
    shared_time = torch.cat([image_ids(*grid, time=10) for grid in GRIDS[:count]])  # a bug others have had
    assert torch.equal(shared_time, expected) is (count == 1)


def test_no_references_have_no_ids() -> None:
    assert reference_ids([]).shape == (0, 4)
    assert reference_ids([]).dtype == image_ids(1, 1).dtype


def test_patchify() -> None:
    latents = numbered(2, 3, 4, 6)
    expected = Flux2KleinPipeline._patchify_latents(latents)
    assert torch.equal(patchify(latents), expected)
    assert torch.equal(unpatchify(expected), latents)


def test_pack() -> None:
    latents = numbered(2, 12, 3, 5)
    expected = Flux2KleinPipeline._pack_latents(latents)
    assert torch.equal(pack(latents), expected)
    assert torch.equal(unpack(expected, 3, 5), latents)
    ids = Flux2KleinPipeline._prepare_latent_ids(latents)
    assert torch.equal(unpack(expected, 3, 5), Flux2KleinPipeline._unpack_latents_with_ids(expected, ids, 3, 5))


class TestBugsAreSeen:
    """Each of these has been made somewhere; the comparison must notice."""

    def test_in_the_axis_of_text_ids(self) -> None:
        expected = Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 7, 2))[0]
        assert_far(text_ids(7)[:, [3, 1, 2, 0]].float(), expected.float())

    def test_in_the_order_of_rows_and_columns(self) -> None:
        expected = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 2, 2, 5))[0]
        assert_far(image_ids(2, 5)[:, [0, 2, 1, 3]].float(), expected.float())

    def test_in_the_times_of_references(self, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = Flux2KleinPipeline._prepare_image_ids([torch.zeros(1, 2, *grid) for grid in GRIDS])[0]
        monkeypatch.setattr(tokens, "REFERENCE_TIME_STEP", 1)
        assert_far(reference_ids(GRIDS).float(), expected.float())

    def test_in_the_channels_of_a_patch(self) -> None:
        latents = numbered(2, 3, 4, 6).float()
        positions_first = patchify(latents).reshape(2, 3, 4, 2, 3).transpose(1, 2).reshape(2, 12, 2, 3)
        assert_far(positions_first, Flux2KleinPipeline._patchify_latents(latents))

    def test_in_the_order_of_tokens(self) -> None:
        latents = numbered(2, 12, 3, 5).float()
        assert_far(pack(latents.mT), Flux2KleinPipeline._pack_latents(latents))
