import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from openklein.engine.checkpoint import fill, find_files, match, read_headers
from openklein.errors import WeightsInvalid, WeightsMissing
from tests.tiny import CHOICE

WEIGHTS = {
    "0.weight": torch.ones(3, 2),
    "0.bias": torch.zeros(3),
    "1.weight": torch.ones(4, 3),
    "1.bias": torch.ones(4),
}


def module() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part.safetensors"


def check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), path)
    match(module(), read_headers([path]), "the part of a model")


class TestFindFiles:
    def test_the_first_pattern_that_has_any_counts(self, tmp_path: Path) -> None:
        for name in ("b.safetensors", "a.safetensors", "c.txt"):
            (tmp_path / name).touch()
        patterns = ("transformer/*.safetensors", "*.safetensors")
        assert find_files(tmp_path, patterns) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        (tmp_path / "transformer").mkdir()
        (tmp_path / "transformer" / "d.safetensors").touch()
        assert find_files(tmp_path, patterns) == [tmp_path / "transformer" / "d.safetensors"]

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissing, match=r"part/\*\.safetensors does not exist; download .* into "):
            find_files(tmp_path, ("part/*.safetensors", "*.safetensors"))

    def test_an_index_says_which_files_count(self, tmp_path: Path) -> None:
        index = {"metadata": {}, "weight_map": {"x": "m-2.safetensors", "y": "m-1.safetensors", "z": "m-2.safetensors"}}
        (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
        for name in ("m-1.safetensors", "m-2.safetensors", "another.safetensors"):
            (tmp_path / name).touch()
        expected = [tmp_path / "m-1.safetensors", tmp_path / "m-2.safetensors"]
        assert find_files(tmp_path, ("*.safetensors",)) == expected
        expected[1].unlink()
        with pytest.raises(WeightsMissing, match=r"m-2\.safetensors does not exist, but m\.safetensors\.index\.json"):
            find_files(tmp_path, ("*.safetensors",))

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', "\xff"])
    def test_a_broken_index_is_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "m.safetensors.index.json").write_text(content, encoding="latin-1")
        with pytest.raises(WeightsInvalid, match=r"m\.safetensors\.index\.json is not the index of a sharded"):
            find_files(tmp_path, ("*.safetensors",))

    def test_an_index_does_not_lead_out_of_its_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "inside"
        folder.mkdir()
        (tmp_path / "outside.safetensors").touch()
        (folder / "m.safetensors.index.json").write_text('{"weight_map": {"x": "../outside.safetensors"}}')
        with pytest.raises(WeightsMissing, match="inside/outside"):
            find_files(folder, ("*.safetensors",))


class TestReadHeaders:
    @pytest.mark.parametrize("kept", [0, 4, 40, -8], ids=str)
    def test_a_file_cut_short_is_named(self, path: Path, kept: int) -> None:
        save_file(WEIGHTS, path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(WeightsInvalid, match=r"part\.safetensors is not a complete .*; download it again"):
            read_headers([path])

    @pytest.mark.parametrize("make", ["folder", "pickle", "text"])
    def test_anything_else_is_named(self, path: Path, make: str) -> None:
        if make == "folder":
            path.mkdir()
        elif make == "pickle":
            torch.save(WEIGHTS, path)
        else:
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7751105712\n")
        with pytest.raises(WeightsInvalid, match=r"part\.safetensors is not a complete safetensors file"):
            read_headers([path])

    def test_files_that_hold_the_same_are_named(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for path in paths:
            save_file(WEIGHTS, path)
        with pytest.raises(WeightsInvalid, match=r"is both in \S+a\.safetensors and in \S+b\.safetensors; keep one"):
            read_headers(paths)


class TestMatch:
    def test_what_fits(self, path: Path) -> None:
        check(path, WEIGHTS)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"0.bias": None}, r"it lacks 0\.bias"),
            ({"2.bias": torch.ones(1)}, r"2\.bias is not part of it"),
            ({"0.weight": torch.ones(2, 3)}, r"0\.weight has shape \(2, 3\), and \(3, 2\) is needed"),
            ({"0.weight": torch.ones(3, 2, 1, 1)}, r"0\.weight has shape \(3, 2, 1, 1\)"),
            ({"0.bias": torch.ones(3, dtype=torch.int8)}, r"0\.bias is stored as I8, and F32 or F16 or BF16"),
            ({"0.weight": torch.ones(3, 2, dtype=torch.int16)}, r"0\.weight is stored as I16, and F32 or F16 or .* I8"),
            (
                {"0.weight": torch.ones(3, 2, dtype=torch.int8)},
                r"stored as I8, and 0\.weight_scale with one number for each row is needed",
            ),
            (
                {"0.weight": torch.ones(3, 2, dtype=torch.int8), "0.weight_scale": torch.ones(2)},
                r"0\.weight_scale with one number for each row is needed",
            ),
            ({"0.weight": torch.ones(3, 2).to(torch.float8_e4m3fn)}, r"0\.weight_scale with one number is needed"),
            (
                {"0.weight": torch.ones(3, 2).to(torch.float8_e4m3fn), "0.weight_scale": torch.ones(3)},
                r"0\.weight_scale with one number is needed",
            ),
            ({"0.weight_scale": torch.tensor(1.0)}, r"0\.weight_scale is not part of it"),
            ({"0.input_scale": torch.tensor(1.0)}, r"0\.input_scale is not part of it"),
        ],
        ids=str,
    )
    def test_what_does_not_is_named_with_its_file(self, path: Path, changes: dict[str, Any], message: str) -> None:
        tensors = {key: tensor for key, tensor in {**WEIGHTS, **changes}.items() if tensor is not None}
        with pytest.raises(WeightsInvalid, match=rf"part\.safetensors does not hold the part of a model: .*{message}"):
            check(path, tensors)


class TestFill:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_rows_of_int8_are_multiplied_by_their_scales(self, path: Path, dtype: torch.dtype) -> None:
        rows, scales = torch.tensor([[127, -128], [3, 0], [-5, 9]], dtype=torch.int8), torch.tensor([0.01, 2.0, 0.3])
        save_file(WEIGHTS | {"0.weight": rows, "0.weight_scale": scales}, path)
        headers, filled = read_headers([path]), module()
        fill(filled, match(filled, headers, "it"), headers, replace(CHOICE, dtype=dtype))
        expected = torch.tensor([[1.27, -1.28], [6, 0], [-1.5, 2.7]]).to(dtype)
        torch.testing.assert_close(filled.state_dict()["0.weight"], expected)
        assert filled.state_dict()["1.weight"].dtype == dtype

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
    def test_tensors_of_the_final_dtype_stay_mapped(self, path: Path) -> None:
        save_file(WEIGHTS, path)
        headers = read_headers([path])
        filled = module()
        fill(filled, match(filled, headers, "it"), headers, CHOICE)
        assert not any(parameter.requires_grad for parameter in filled.parameters())
        assert all(torch.equal(filled.state_dict()[key], tensor) for key, tensor in WEIGHTS.items())
        addresses = {tensor.data_ptr() for tensor in filled.state_dict().values()}
        mapped = [
            range(*(int(end, 16) for end in line.split()[0].split("-")))
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(str(path))
        ]
        assert all(any(address in part for part in mapped) for address in addresses)
