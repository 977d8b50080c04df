"""Make a klein-mini that is as small as its shape allows, for every test that needs a model."""

from dataclasses import replace

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.mini_autoencoder import MiniAutoencoderConfig

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

TINY_CARD = replace(
    KLEIN_MINI,
    transformer=replace(
        KLEIN_MINI.transformer,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_heads=2,
        head_dim=16,
        joint_attention_dim=32,
        axes_dims=(4, 4, 4, 4),
        timestep_channels=32,
    ),
    text_encoder=replace(
        KLEIN_MINI.text_encoder,
        vocab_size=256 + len(SPECIAL_TOKENS),
        hidden_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=32,
        feature_layers=(1, 2),
    ),
    autoencoder=MiniAutoencoderConfig(
        latent_channels=4,
        encoder_channels=(8, 8, 8),
        encoder_blocks=(1, 1, 1),
        decoder_channels=(8, 8, 8),
        decoder_blocks=(1, 1, 1),
        tail_channels=8,
    ),
)


def tiny_tokenizer() -> Tokenizer:
    """Make a tokenizer that gives every byte a token of its own."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer
