from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_4B
from openklein.engine.checkpoint import fill, match, read_headers
from openklein.engine.memory import weight_bytes
from openklein.engine.pipeline import Pipeline
from openklein.engine.quantize import FP8, Fp8Linear, Int8Linear, check_quantization, quantize_blocks, quantize_rows
from openklein.engine.transformer import FlowTransformer
from openklein.engine.types import ImageRequest
from openklein.engine.weights import load_card, load_pipeline
from openklein.errors import InvalidSetting
from openklein.settings import Quantization
from tests.parity.compare import relative_error
from tests.stand_in_gpu import GPU, DevicesKeptApart, pipeline_on_gpu
from tests.tiny import CHOICE, TINY_CARD, save_tiny_model, tiny_modules, tiny_pipeline

STEP = 2**-4  # half the distance of neighbours in e4m3, which has 3 bits behind the first, relative to them


def random_rows(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Make rows whose sizes differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-4, 2, rows)[:, None]


def fp8_linear(weight: Tensor, *, is_native: bool) -> Fp8Linear:
    layer = Fp8Linear(weight.shape[1], weight.shape[0], is_native=is_native)
    layer.weight, layer.weight_scale = quantize_rows(weight)
    return layer


class TestRows:
    def test_each_is_rounded_by_a_scale_of_its_own(self) -> None:
        weight = random_rows(7, 256)
        values, scale = quantize_rows(weight)
        assert (values.dtype, scale.dtype, scale.shape) == (FP8, torch.float32, (7,))
        largest = weight.abs().amax(dim=1)
        error = (values.float() * scale[:, None] - weight).abs()
        smallest_step = largest[:, None] / 448 * 2**-10  # half the distance of the numbers below 2^-6
        assert (error <= torch.maximum(weight.abs() * STEP, smallest_step) * 1.001).all()
        assert 0.01 < relative_error(values.float() * scale[:, None], weight) < 0.04

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_nothing_overflows_and_zeros_stay(self, dtype: torch.dtype) -> None:
        weight = torch.tensor([[0.0, 0.0], [3e38, -3e38], [1e-38, 0.0], [448.0, 448.0]], dtype=dtype)
        values, scale = quantize_rows(weight)
        restored = values.float() * scale[:, None]
        assert torch.isfinite(restored).all()
        assert (restored - weight.float()).abs().max() <= 3e38 * STEP
        assert torch.equal(restored[0], torch.zeros(2)) and torch.equal(restored[3], torch.full((2,), 448.0))

    def test_to_whole_numbers(self) -> None:
        weight = torch.cat([random_rows(7, 256), torch.zeros(1, 256)])
        values, scale = quantize_rows(weight, torch.int8)
        assert values.dtype == torch.int8
        assert values.int().abs().amax(dim=1).tolist() == [127] * 7 + [0]
        assert ((values * scale[:, None] - weight).abs() <= scale[:, None] * 0.501).all()
        assert torch.equal(values[7], torch.zeros(256, dtype=torch.int8))


class TestInt8Layer:
    def test_rounded_rows_are_multiplied_exactly(self) -> None:
        torch.manual_seed(0)
        weight, x = torch.randn(48, 64), random_rows(10, 64, seed=1).view(2, 5, 64)
        layer = Int8Linear(64, 48)
        layer.weight, layer.weight_scale = quantize_rows(weight, torch.int8)
        values, scale = quantize_rows(x.flatten(0, 1), torch.int8)
        rounded = (values.double() * scale[:, None]).view(2, 5, 64)
        restored = layer.weight.double() * layer.weight_scale[:, None]
        assert relative_error(layer(x), F.linear(rounded, restored)) < 1e-6
        out = layer(x.bfloat16())
        assert (out.shape, out.dtype) == ((2, 5, 48), torch.bfloat16)
        for row, exact in zip(out.flatten(0, 1).float(), F.linear(x, weight).flatten(0, 1), strict=True):
            assert relative_error(row, exact) < 0.04  # small rows too


class TestLayer:
    def test_elsewhere_weights_are_used_in_the_dtype_of_the_input(self) -> None:
        weight, x = random_rows(48, 64), random_rows(3, 64, seed=1)[None]
        layer = fp8_linear(weight, is_native=False)
        restored = layer.weight.float() * layer.weight_scale[:, None]
        assert relative_error(layer(x), F.linear(x, restored)) < 1e-6
        assert relative_error(layer(x.bfloat16()).float(), F.linear(x, restored)) < 0.01

    def test_native_products_round_the_input_by_row_as_well(self) -> None:
        torch.manual_seed(0)
        weight, x = torch.randn(48, 64), random_rows(10, 64, seed=1).view(2, 5, 64).bfloat16()
        layer = fp8_linear(weight, is_native=True)
        out = layer(x)
        assert (out.shape, out.dtype) == ((2, 5, 48), torch.bfloat16)
        values, scale = quantize_rows(x.flatten(0, 1))
        rounded = (values.float() * scale[:, None]).view(2, 5, 64)
        restored = layer.weight.float() * layer.weight_scale[:, None]
        assert relative_error(out.float(), F.linear(rounded, restored)) < 0.01
        for row, exact in zip(out.flatten(0, 1).float(), F.linear(x.float(), weight).flatten(0, 1), strict=True):
            assert relative_error(row, exact) < 0.1  # small rows too


class TestTransformer:
    @pytest.mark.parametrize(("dtype", "kind"), [(FP8, Fp8Linear), (torch.int8, Int8Linear)], ids=str)
    def test_the_blocks_are_quantised_and_nothing_else(self, dtype: torch.dtype, kind: type[nn.Module]) -> None:
        with torch.device("meta"):
            transformer = FlowTransformer(KLEIN_4B.transformer)
        whole = weight_bytes(transformer, torch.bfloat16)
        linear_layers = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
        quantize_blocks(transformer, CHOICE, dtype)
        kept = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
        quantised = {name for name, module in transformer.named_modules() if isinstance(module, kind)}
        assert kept | quantised == linear_layers
        assert all("transformer_blocks." in name for name in quantised)
        assert kept == {
            "x_embedder",
            "context_embedder",
            "time_guidance_embed.timestep_embedder.linear_1",
            "time_guidance_embed.timestep_embedder.linear_2",
            "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.linear",
            "single_stream_modulation.linear",
            "norm_out.linear",
            "proj_out",
        }
        assert weight_bytes(transformer, torch.bfloat16) / whole == pytest.approx(0.53, abs=0.02)

    @pytest.mark.parametrize("quantization", ["fp8", "int8"])
    def test_its_pictures_stay_close(self, tmp_path: Path, quantization: Quantization) -> None:
        save_tiny_model(tmp_path)
        request = ImageRequest("a red apple", 1024, 1024, seed=1)
        exact = torch.tensor(list(tiny_pipeline().generate(request).image.tobytes())).float()
        quantised = load_card(TINY_CARD, tmp_path, CHOICE, quantization).generate(request)
        error = relative_error(torch.tensor(list(quantised.image.tobytes())).float(), exact)
        assert 0 < error < 0.1

    @pytest.mark.parametrize("is_native", [False, True])
    def test_its_shapes_suit_a_gpu(self, monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
        monkeypatch.setattr("openklein.engine.quantize.multiplies_fp8", lambda device: is_native)
        card = replace(KLEIN_4B, transformer=replace(KLEIN_4B.transformer, num_layers=1, num_single_layers=1))
        transformer = pipeline_on_gpu(card, fp8=True)._transformer
        layers = [module for module in transformer.modules() if isinstance(module, Fp8Linear)]
        assert len(layers) == 14 and all(layer.is_native is is_native for layer in layers)
        image, text, sigma = (
            torch.empty(shape, device=GPU, dtype=torch.bfloat16) for shape in ((1, 90, 128), (1, 512, 7680), (1,))
        )
        rotary = transformer.rotary(torch.zeros(602, 4, dtype=torch.int64, device=GPU))
        with DevicesKeptApart():
            assert transformer(image, text, sigma, rotary).shape == (1, 90, 128)


class TestLoading:
    @staticmethod
    def load(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype = FP8) -> FlowTransformer:
        save_file(dict(tensors), path)
        with torch.device("meta"):
            transformer = FlowTransformer(TINY_CARD.transformer)
        headers = read_headers([path])
        sources = match(transformer, headers, "the transformer")
        quantize_blocks(transformer, CHOICE, dtype)
        fill(transformer, sources, headers, CHOICE)
        return transformer

    def test_weights_are_rounded_as_they_are_read(self, tmp_path: Path) -> None:
        tensors = tiny_modules()[1].state_dict()
        loaded = self.load(tmp_path / "transformer.safetensors", tensors).state_dict()
        name = "single_transformer_blocks.0.attn.to_out.weight"
        values, scale = quantize_rows(tensors[name])
        assert torch.equal(loaded[name].float(), values.float()) and torch.equal(loaded[f"{name}_scale"], scale)
        assert torch.equal(loaded["proj_out.weight"], tensors["proj_out.weight"])

    def test_fp8_weights_of_a_file_are_taken_as_they_are(self, tmp_path: Path) -> None:
        tensors = dict(tiny_modules()[1].state_dict())
        inside, outside = "single_transformer_blocks.0.attn.to_out.weight", "proj_out.weight"
        for name in (inside, outside):
            tensors |= {name: (tensors[name] / 0.01).to(FP8), f"{name}_scale": torch.tensor(0.01)}
        loaded = self.load(tmp_path / "transformer.safetensors", tensors).state_dict()
        assert torch.equal(loaded[inside].float(), tensors[inside].float())
        assert loaded[f"{inside}_scale"].tolist() == pytest.approx([0.01] * len(tensors[inside]))
        assert loaded[outside].dtype == torch.float32
        assert relative_error(loaded[outside], tensors[outside].float() * 0.01) < 1e-6

    @pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=str)
    def test_int8_weights_of_a_file_are_taken_as_they_are_for_int8_alone(
        self, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        tensors = dict(tiny_modules()[1].state_dict())
        name = "single_transformer_blocks.0.attn.to_out.weight"
        values, scales = quantize_rows(tensors[name] / 2, torch.int8)
        values[0] = 1  # which reads 127 once it is rounded anew
        tensors |= {name: values, f"{name}_scale": scales}
        loaded = self.load(tmp_path / "transformer.safetensors", tensors, dtype).state_dict()
        if dtype == torch.int8:
            assert torch.equal(loaded[name], values) and torch.equal(loaded[f"{name}_scale"], scales)
        else:
            kept = loaded[name].float() * loaded[f"{name}_scale"][:, None]
            assert relative_error(kept, values * scales[:, None]) < STEP

    def test_int8_is_compiled(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        compiled: list[Pipeline] = []
        monkeypatch.setattr(Pipeline, "compile_blocks", lambda self: compiled.append(self))
        monkeypatch.setattr("openklein.engine.quantize.cpu_flags", lambda: {"avx512_vnni"})
        pipeline = load_pipeline("klein-mini", tmp_path, CHOICE, quantization="int8")
        assert compiled == [pipeline]
        assert isinstance(pipeline._transformer.get_submodule("transformer_blocks.0.ff.linear_in"), Int8Linear)


def test_fp8_is_refused_where_it_does_not_run() -> None:
    check_quantization("none", CHOICE.device)
    check_quantization("fp8", torch.device("cuda"))
    with pytest.raises(InvalidSetting, match=r"--quantize fp8 is for NVIDIA GPUs, and the model runs on cpu; leave"):
        check_quantization("fp8", CHOICE.device)


def test_int8_is_refused_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match=r"--quantize int8 is for CPUs, and the model runs on cuda; leave"):
        check_quantization("int8", torch.device("cuda"))
    for flags, is_fast in (({"avx2"}, False), ({"avx2", "avx512_vnni"}, True)):
        monkeypatch.setattr("openklein.engine.quantize.cpu_flags", lambda flags=flags: flags)
        if is_fast:
            check_quantization("int8", CHOICE.device)
        else:
            with pytest.raises(InvalidSetting, match=r"--quantize int8 needs a CPU with one of .*avx512_vnni"):
                check_quantization("int8", CHOICE.device)
