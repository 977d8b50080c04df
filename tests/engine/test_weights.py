import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openklein.contract import DEFAULT_MODEL, MINI_MODEL
from openklein.engine import weights
from openklein.engine.autoencoder import AutoencoderConfig
from openklein.engine.catalog import CATALOG, KLEIN_4B
from openklein.engine.device import DeviceChoice
from openklein.engine.manifest import Manifest, ModelFile, write_manifest
from openklein.engine.offload import Visitor
from openklein.engine.types import ImageRequest
from openklein.engine.weights import choose_offload, empty_modules, installed, load_card, load_pipeline, model_folder
from openklein.errors import NotEnoughMemory, WeightsInvalid, WeightsMissing
from tests.parity import makers
from tests.tiny import CHOICE, TINY_CARD, save_tiny_model, tiny_modules, tiny_pipeline, tiny_tokenizer

REQUEST = ImageRequest("a red apple", 128, 128, seed=1)
SMALL = ImageRequest("a red apple", 32, 32, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path)
    return tmp_path


def change(path: Path, **changes: Tensor | None) -> None:
    """Rewrite a file of tensors; None leaves one out."""
    tensors: dict[str, Tensor | None] = {**load_file(path), **changes}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)


def test_what_was_saved_is_loaded(folder: Path) -> None:
    loaded = load_card(TINY_CARD, folder, CHOICE)
    assert loaded.generate(REQUEST).image.tobytes() == tiny_pipeline().generate(REQUEST).image.tobytes()


def test_the_chosen_dtype_is_used(folder: Path) -> None:
    rough = load_card(TINY_CARD, folder, replace(CHOICE, dtype=torch.bfloat16))
    for module in (rough._text_encoder, rough._transformer, rough._autoencoder):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert rough.generate(REQUEST).image.size == (128, 128)


@pytest.mark.parametrize("name", ["transformer.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsMissing, match=name):
        load_card(TINY_CARD, folder, CHOICE)


def test_a_file_cut_short_is_named(folder: Path) -> None:
    path = folder / "transformer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsInvalid, match=r"transformer\.safetensors is not a complete"):
        load_card(TINY_CARD, folder, CHOICE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proj_out.weight": None}, r"transformer\.safetensors .* lacks proj_out\.weight"),
        ({"proj_in.weight": torch.zeros(1)}, r"proj_in\.weight is not part of it"),
        ({"proj_out.weight": torch.zeros(16, 31)}, r"proj_out\.weight has shape \(16, 31\), and \(16, 32\) is needed"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, changes: dict[str, Tensor | None], message: str) -> None:
    change(folder / "transformer.safetensors", **changes)
    with pytest.raises(WeightsInvalid, match=message):
        load_card(TINY_CARD, folder, CHOICE)


def test_what_follows_the_last_layer_used_is_left_out(folder: Path) -> None:
    unused: dict[str, Tensor | None] = {
        "model.norm.weight": torch.ones(16),
        "lm_head.weight": torch.ones(4, 16),
        "model.layers.2.mlp.up_proj.weight": torch.ones(3, 16),
        "model.layers.10.mlp.up_proj.weight": torch.ones(3, 16),
    }
    change(folder / "text_encoder.safetensors", **unused)
    loaded = load_card(TINY_CARD, folder, CHOICE)
    assert loaded.generate(REQUEST).image.tobytes() == tiny_pipeline().generate(REQUEST).image.tobytes()


def test_weights_may_be_spread_over_files(folder: Path) -> None:
    tensors = load_file(folder / "transformer.safetensors")
    (folder / "transformer").mkdir()
    for i, (key, tensor) in enumerate(tensors.items()):
        save_file({key: tensor}, folder / "transformer" / f"{i}.safetensors")
    card = replace(TINY_CARD, files={**TINY_CARD.files, "transformer": ("transformer/*.safetensors",)})
    loaded = load_card(card, folder, CHOICE)
    assert loaded.generate(REQUEST).image.tobytes() == tiny_pipeline().generate(REQUEST).image.tobytes()


class TestTheFolderOfThe4B:
    CARD = replace(
        KLEIN_4B,
        token_px=4,
        transformer=TINY_CARD.transformer,
        text_encoder=TINY_CARD.text_encoder,
        autoencoder=AutoencoderConfig(block_out_channels=(4, 8), latent_channels=4, norm_num_groups=4),
        small_autoencoder=AutoencoderConfig(
            block_out_channels=(4, 8), decoder_block_out_channels=(4, 4), latent_channels=4, norm_num_groups=4
        ),
    )

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Lay it out as diffusers does, the text encoder in shards with an index."""
        text_encoder, transformer, autoencoder = tiny_modules(self.CARD)
        for part, module in {"transformer": transformer, "vae": autoencoder}.items():
            (tmp_path / part).mkdir()
            save_file(module.state_dict(), tmp_path / part / "diffusion_pytorch_model.safetensors")
        (tmp_path / "text_encoder").mkdir()
        tensors = list(text_encoder.state_dict().items())
        shards = {"model-1.safetensors": tensors[::2], "model-2.safetensors": tensors[1::2]}
        for name, shard in shards.items():
            save_file(dict(shard), tmp_path / "text_encoder" / name)
        index = {"weight_map": {key: name for name, shard in shards.items() for key, _ in shard}}
        (tmp_path / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
        (tmp_path / "tokenizer").mkdir()
        tiny_tokenizer().save(str(tmp_path / "tokenizer" / "tokenizer.json"))
        return tmp_path

    def test_it_is_loaded(self, folder: Path) -> None:
        loaded = load_card(self.CARD, folder, CHOICE)
        assert loaded.generate(SMALL).image.tobytes() == tiny_pipeline(self.CARD).generate(SMALL).image.tobytes()

    def test_a_single_file_beside_the_other_parts_is_the_transformer(self, folder: Path) -> None:
        tensors = makers.transformer(self.CARD.transformer)
        save_file(tensors, folder / "flux-2-klein-4b.safetensors")
        beside = load_card(self.CARD, folder, CHOICE)._transformer.x_embedder.weight
        assert not torch.equal(beside, tensors["img_in.weight"])  # the folder counts first
        shutil.rmtree(folder / "transformer")
        loaded = load_card(self.CARD, folder, CHOICE)
        assert torch.equal(loaded._transformer.x_embedder.weight, tensors["img_in.weight"])
        assert loaded.generate(SMALL).image.size == (32, 32)

    @pytest.mark.parametrize("size", ["autoencoder", "small_autoencoder"])
    def test_the_decoder_is_as_large_as_in_the_file(self, folder: Path, size: str) -> None:
        config = getattr(self.CARD, size)
        tensors = makers.autoencoder(config)
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        save_file(tensors, folder / "vae" / "full_encoder_small_decoder.safetensors")
        loaded = load_card(self.CARD, folder, CHOICE)
        assert loaded._autoencoder.config == config
        assert torch.equal(loaded._autoencoder.decoder.conv_out.weight, tensors["decoder.conv_out.weight"])
        assert loaded.generate(SMALL).image.size == (32, 32)


class TestInstalled:
    def test_an_empty_folder_holds_no_model(self, tmp_path: Path) -> None:
        assert not installed(DEFAULT_MODEL, tmp_path)
        with pytest.raises(WeightsMissing, match="download the model's files into"):
            load_pipeline(DEFAULT_MODEL, tmp_path, CHOICE)

    def test_every_part_is_needed(self, tmp_path: Path) -> None:
        files = [
            tmp_path / DEFAULT_MODEL / patterns[0].replace("*", "part")
            for patterns in CATALOG[DEFAULT_MODEL].files.values()
        ]
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert installed(DEFAULT_MODEL, tmp_path)
        files[-1].unlink()
        assert not installed(DEFAULT_MODEL, tmp_path)

    def test_a_download_counts_once_it_is_complete(self, tmp_path: Path) -> None:
        folder = tmp_path / DEFAULT_MODEL
        files = tuple(
            ModelFile(patterns[0].replace("*", "part"), 4, "sha256:0")
            for patterns in CATALOG[DEFAULT_MODEL].files.values()
        )
        for file in files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).write_bytes(b"1234")
        manifest = Manifest("someone/a-model", "c" * 40, files, is_complete=False)
        write_manifest(folder, manifest)
        assert not installed(DEFAULT_MODEL, tmp_path)
        write_manifest(folder, replace(manifest, is_complete=True))
        assert installed(DEFAULT_MODEL, tmp_path)
        (folder / files[1].path).write_bytes(b"123")
        assert not installed(DEFAULT_MODEL, tmp_path)

    def test_klein_mini_lies_in_the_package(self, tmp_path: Path) -> None:
        folder = model_folder(MINI_MODEL, tmp_path)
        assert folder.parts[-3:] == ("openklein", "weights", "klein_mini")
        assert model_folder(DEFAULT_MODEL, tmp_path) == tmp_path / DEFAULT_MODEL

    def test_a_klein_mini_put_among_the_models_counts_before_the_package_s(self, tmp_path: Path) -> None:
        (tmp_path / MINI_MODEL).mkdir()
        assert model_folder(MINI_MODEL, tmp_path) == tmp_path / MINI_MODEL
        assert not installed(MINI_MODEL, tmp_path)


class TestChooseOffload:
    """With the shapes of the 4B, and free memory as a card of so many gigabytes would have it."""

    GPU = DeviceChoice(torch.device("cuda"), torch.bfloat16, "a card")

    @staticmethod
    def choose(
        monkeypatch: pytest.MonkeyPatch, *, device_gb: float, system_gb: float = 64, choice: DeviceChoice = GPU
    ) -> bool:
        free = {choice.device: device_gb * 1e9}
        monkeypatch.setattr(weights, "available_bytes", lambda device: free.get(device, system_gb * 1e9))
        monkeypatch.setattr("openklein.engine.quantize.multiplies_fp8", lambda device: True)
        return choose_offload(KLEIN_4B, empty_modules(KLEIN_4B, KLEIN_4B.autoencoder), choice)

    @pytest.mark.parametrize(("device_gb", "is_offloaded"), [(80, False), (17.5, False), (16, True), (11.5, True)])
    def test_the_text_encoder_makes_room_where_the_card_is_small(
        self, monkeypatch: pytest.MonkeyPatch, device_gb: float, is_offloaded: bool
    ) -> None:
        assert self.choose(monkeypatch, device_gb=device_gb) is is_offloaded

    @pytest.mark.parametrize(
        ("device_gb", "system_gb", "sentence"),
        [
            (
                8,
                64,
                r"flux2-klein-4b needs 17\.\d GB of memory on cuda in torch\.bfloat16, 11\.\d GB with its text encoder "
                r"in system memory, and 8\.0 GB are available; free some, or choose what fits: "
                r"--quantize fp8 \(7\.\d GB\), --model klein-mini \(0\.2 GB\)\.",
            ),
            (2, 64, r".* 2\.0 GB are available; free some, or choose what fits: --model klein-mini \(0\.2 GB\)\."),
            (0.01, 64, r".* 0\.0 GB are available; free some\."),
            (
                12,
                4,
                r".* needs 17\.\d GB of memory on cuda in torch\.bfloat16, and 12\.0 GB .*: --model klein-mini",
            ),
        ],
    )
    def test_what_does_not_fit_is_said_with_what_would(
        self, monkeypatch: pytest.MonkeyPatch, device_gb: float, system_gb: float, sentence: str
    ) -> None:
        with pytest.raises(NotEnoughMemory, match=f"^{sentence}"):
            self.choose(monkeypatch, device_gb=device_gb, system_gb=system_gb)

    def test_a_cpu_has_nothing_to_offload_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        choice = DeviceChoice(torch.device("cpu"), torch.bfloat16, "a CPU")
        assert self.choose(monkeypatch, device_gb=20, choice=choice) is False
        for flags, fitting in (({"avx512_vnni"}, r"--quantize int8 \(13\.\d GB\), "), (set(), "")):
            monkeypatch.setattr("openklein.engine.quantize.cpu_flags", lambda flags=flags: flags)
            sentence = rf"17\.\d GB of memory on cpu .* 16\.0 GB .*: {fitting}--model klein-mini"
            with pytest.raises(NotEnoughMemory, match=sentence):
                self.choose(monkeypatch, device_gb=16, choice=choice)

    def test_an_offloaded_model_makes_the_same_pictures(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights, "choose_offload", lambda *_: True)
        loaded = load_card(TINY_CARD, folder, CHOICE)
        assert {type(layer) for layer in loaded._text_encoder.layers} == {Visitor}
        assert loaded.generate(REQUEST).image.tobytes() == tiny_pipeline().generate(REQUEST).image.tobytes()
