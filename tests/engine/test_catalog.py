from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import Module

from openklein import contract
from openklein.engine.autoencoder import Autoencoder, AutoencoderConfig
from openklein.engine.catalog import CATALOG, KLEIN_4B, KLEIN_BASE_4B, KLEIN_MINI, ModelCard
from openklein.engine.images import crop_reference
from openklein.engine.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.text_encoder import TextEncoder
from openklein.engine.transformer import FlowTransformer


def parameter_count(card: ModelCard) -> tuple[int, int, int]:
    """Count those of the transformer, the text encoder and the autoencoder."""
    with torch.device("meta"):
        if isinstance(card.autoencoder, AutoencoderConfig):
            autoencoder: Module = Autoencoder(card.autoencoder)
        else:
            autoencoder = MiniAutoencoder(card.autoencoder)
        modules: list[Module] = [FlowTransformer(card.transformer), TextEncoder(card.text_encoder), autoencoder]
    transformer_count, text_count, autoencoder_count = (sum(p.numel() for p in m.parameters()) for m in modules)
    return transformer_count, text_count, autoencoder_count


def test_the_models_are_those_of_the_contract() -> None:
    assert tuple(CATALOG) == contract.SERVABLE_MODEL_IDS
    assert all(card.id == model_id for model_id, card in CATALOG.items())


@pytest.mark.parametrize("card", CATALOG.values(), ids=CATALOG)
def test_the_parts_fit_together(card: ModelCard) -> None:
    assert sum(card.transformer.axes_dims) == card.transformer.head_dim
    assert card.transformer.joint_attention_dim == card.text_encoder.feature_size
    assert card.transformer.in_channels == 4 * card.autoencoder.latent_channels


@pytest.mark.parametrize(
    "card", [card for card in CATALOG.values() if card.reference_max_area], ids=lambda card: card.id
)
def test_every_accepted_reference_holds_a_token(card: ModelCard) -> None:
    smallest, thinnest = contract.MIN_REFERENCE_SIDE_PX, contract.MAX_REFERENCE_ASPECT
    assert card.reference_max_area
    for size in [(smallest, smallest), (smallest, smallest * thinnest), (smallest * thinnest, smallest)]:
        fitted = crop_reference(Image.new("RGB", size), multiple=card.token_px, max_area=card.reference_max_area)
        assert fitted.width % card.token_px == fitted.height % card.token_px == 0


def test_only_klein_mini_has_canvases_of_its_own() -> None:
    assert {card.id for card in CATALOG.values() if card.reference_max_area is None} == {contract.MINI_MODEL}


def test_the_official_model_has_its_published_sizes() -> None:
    transformer, text_encoder, autoencoder = parameter_count(KLEIN_4B)
    assert transformer == 3_875_544_576
    assert autoencoder == 84_046_115
    embedding, layer = 151_936 * 2560, 100_930_816  # Qwen3-4B's
    assert text_encoder == embedding + 27 * layer
    assert isinstance(KLEIN_4B.autoencoder, AutoencoderConfig)
    assert KLEIN_4B.steps == 4


def test_the_smaller_decoder_has_its_published_size() -> None:
    assert KLEIN_4B.small_autoencoder
    _, _, parameters = parameter_count(replace(KLEIN_4B, autoencoder=KLEIN_4B.small_autoencoder))
    statistics = 4 * 2 * 128 + 8  # bytes of the normaliser's
    assert 0 < 249_519_092 - (4 * parameters + statistics) < 30_000  # the file's header


def test_the_base_model_is_the_same_before_distillation() -> None:
    assert (KLEIN_BASE_4B.id, KLEIN_BASE_4B.steps, KLEIN_BASE_4B.guidance) == ("flux2-klein-base-4b", 50, 4.0)
    same = replace(KLEIN_4B, id=KLEIN_BASE_4B.id, description=KLEIN_BASE_4B.description, source=KLEIN_BASE_4B.source)
    assert replace(same, steps=50, guidance=4.0) == KLEIN_BASE_4B


def test_the_official_prompt_template() -> None:
    config = KLEIN_4B.text_encoder
    assert config.prefix + "PROMPT" + config.suffix == (
        "<|im_start|>user\nPROMPT<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert (config.feature_layers, config.pad_multiple, config.pad_token) == ((9, 18, 27), 512, "<|endoftext|>")


def test_klein_mini_is_small() -> None:
    assert isinstance(KLEIN_MINI.autoencoder, MiniAutoencoderConfig)
    assert 2 * sum(parameter_count(KLEIN_MINI)) < 80_000_000  # bytes in 16 bit
