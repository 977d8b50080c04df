from dataclasses import replace

import pytest
import torch

from openklein.engine.catalog import KLEIN_4B
from openklein.engine.memory import weight_bytes
from openklein.engine.offload import offload
from openklein.engine.text_encoder import TextEncoder
from tests.stand_in_gpu import CPU, GPU, DevicesKeptApart, PeakBytes, fill
from tests.tiny import tiny_modules


def test_features_are_the_same() -> None:
    ids, mask = torch.arange(64).view(2, 32), torch.ones(2, 32, dtype=torch.bool)
    text_encoder = tiny_modules()[0]
    expected = text_encoder(ids, mask)
    offload(text_encoder, CPU)
    assert torch.equal(text_encoder(ids, mask), expected)


class TestBesideAGpu:
    IDS, MASK = torch.zeros(1, 512, dtype=torch.int64), torch.ones(1, 512, dtype=torch.bool)

    @pytest.fixture
    def text_encoder(self) -> TextEncoder:
        """Give one as wide as that of the 4B, its weights in system memory."""
        config = replace(KLEIN_4B.text_encoder, vocab_size=10, feature_layers=(1, 2, 3))
        with torch.device("meta"):
            text_encoder = TextEncoder(config)
        fill(text_encoder, CPU)
        return text_encoder

    def test_one_layer_at_a_time_is_on_it(self, text_encoder: TextEncoder) -> None:
        layer_bytes = weight_bytes(text_encoder.layers[0], torch.bfloat16)
        offload(text_encoder, GPU)
        with DevicesKeptApart() as kept_apart, PeakBytes(GPU) as gpu:
            features = text_encoder(self.IDS, self.MASK)
        assert (features.device, features.shape) == (GPU, (1, 512, 7680))
        assert {tensor.device for tensor in text_encoder.state_dict().values()} == {CPU}
        assert layer_bytes < gpu.peak < 2 * layer_bytes
        copies = [name for name in kept_apart.copies if "copy" in name]  # of rows, mask and every weight
        assert len(copies) == 2 + 3 * len(text_encoder.layers[0].state_dict())

    def test_without_visitors_the_devices_do_not_meet(self, text_encoder: TextEncoder) -> None:
        text_encoder.embedding.register_forward_hook(lambda _, __, rows: rows.to(GPU))
        with pytest.raises((AssertionError, RuntimeError)), DevicesKeptApart():
            text_encoder(self.IDS, self.MASK)
