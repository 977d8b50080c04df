import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from openklein.engine.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelFile,
    differing,
    has_digest,
    read_manifest,
    write_manifest,
)
from openklein.errors import WeightsInvalid

BYTES = b"\x00weights\xff" * 100
SHA256 = f"sha256:{hashlib.sha256(BYTES).hexdigest()}"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "a.safetensors").write_bytes(BYTES)
    files = (ModelFile("vae/a.safetensors", len(BYTES), SHA256),)
    return Manifest("someone/a-model", "c" * 40, files, is_complete=True)


def test_what_is_written_is_read(tmp_path: Path, manifest: Manifest) -> None:
    assert read_manifest(tmp_path) is None
    for record in (replace(manifest, is_complete=False), manifest):
        write_manifest(tmp_path, record)
        assert read_manifest(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [MANIFEST_NAME]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": 1}', '{"files": [{"path": "../../home", "size": 1, "digest": "git:0"}]}'],
)
def test_a_damaged_record_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(WeightsInvalid, match=rf"{MANIFEST_NAME} is not the record of a download .* models rm"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../vae/a.safetensors", "vae/../../a.safetensors"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, manifest: Manifest, path: str) -> None:
    with pytest.raises(ValueError, match="leads out of the folder"):
        replace(manifest.files[0], path=path)
    write_manifest(tmp_path, manifest)
    record = json.loads((tmp_path / MANIFEST_NAME).read_text())
    record["files"][0]["path"] = path
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(record))
    with pytest.raises(WeightsInvalid, match="leads out of the folder"):
        read_manifest(tmp_path)


def test_small_files_have_the_digest_that_git_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(BYTES)
    made = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert has_digest(path, f"git:{made}")
    assert not has_digest(path, f"git:{made[:-1]}{'0' if made[-1] != '0' else '1'}")


@pytest.mark.parametrize("changed", [BYTES[:-1], BYTES + b"\x00", b"\x01" + BYTES[1:], None])
def test_a_file_that_is_short_long_changed_or_gone_differs(
    tmp_path: Path, manifest: Manifest, changed: bytes | None
) -> None:
    assert differing(manifest.files, tmp_path) == []
    path = tmp_path / "vae" / "a.safetensors"
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    assert differing(manifest.files, tmp_path) == list(manifest.files)
