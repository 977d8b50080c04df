import io
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.servers import Server, StartServer, clean_environment
from tests.waiting import wait_until


def test_the_printed_curl_line_makes_an_image(server: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    assert server.key
    (line,) = [line.strip() for line in server.stdout.splitlines() if line.strip().startswith("curl ")]
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, capture_output=True, env=clean_environment())
    with Image.open(tmp_path / "apple.png") as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (1344, 768))


def test_the_key_is_printed_once_and_never_logged(server: Server) -> None:
    assert server.stdout.count(server.key) == 2  # alone, and in the line to try it
    assert server.key not in server.log


def test_the_log_names_the_stand_in_and_the_reason_of_the_dtype(server: Server) -> None:
    assert "klein-mini stands in for flux2-klein-4b" in server.log
    assert re.search(r"device: \w+, b?float\d+: \w+", server.log)
    assert "WARNING" not in server.log


def test_the_log_has_request_ids_but_no_prompts(server: Server) -> None:
    with server.client() as client:
        response = client.post(
            "/v1/generate", json={"prompt": "a zebra in a hammock", "aspect_ratio": "square", "seed": 1}
        )
    assert response.status_code == 200
    assert response.headers["x-klein-model"] == "klein-mini"
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == (1024, 1024)
    wait_until(lambda: response.headers["x-request-id"] in server.log)  # which is written after the answer
    assert "zebra" not in server.log


def test_a_second_start_keeps_the_key_and_prints_none(start_server: StartServer, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with start_server(data_dir) as first:
        first.wait_until_ready()
        key = first.key
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    with start_server(data_dir) as second:
        second.wait_until_ready()
        assert "klein_" not in second.stdout
        with second.client(key) as client:
            assert client.post("/v1/generate", json={"prompt": "a red apple"}).status_code == 200


def test_a_device_that_cannot_make_the_time_is_named(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(tmp_path / "data", "--request-timeout-s", "0.001") as server:
        server.wait_until_ready()
        assert server.key  # which is printed after it
        assert re.search(r"WARNING .* 1024x1024 is expected to take \d+\.\d s here.* may take 0\.001 s", server.log)


def test_a_fixed_key_from_the_environment_is_enough(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(tmp_path / "data", env={"OPENKLEIN_API_KEY": "any text"}) as server:
        server.wait_until_ready()
        assert server.stdout == ""
        assert "any text" not in server.log
        with server.client("any text") as client:
            assert client.post("/v1/generate", json={"prompt": "a red apple"}).status_code == 200
        with server.client("another") as client:
            assert client.post("/v1/generate", json={"prompt": "a red apple"}).status_code == 401


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines reach this server; add --public"),
        (["--port", "http"], "--port cannot be 'http'"),
        (["--data-dir", "/dev/null/data"], "the data folder /dev/null/data cannot be used"),
        (["--host", "203.0.113.1", "--public"], "cannot listen on 203.0.113.1 port 0"),
    ],
)
def test_wrong_settings_end_it_with_one_sentence(
    openklein: Path, tmp_path: Path, flags: list[str], sentence: str
) -> None:
    command = [str(openklein), "serve", "--port", "0", "--data-dir", str(tmp_path / "data"), *flags]
    run = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr


def test_a_port_that_is_taken_is_named(openklein: Path, server: Server, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    command = [str(openklein), "serve", "--port", port, "--data-dir", str(tmp_path / "data")]
    run = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (2, ""), shlex.join(command)
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in run.stderr


def test_a_model_that_cannot_be_loaded_ends_it(start_server: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "models" / "flux2-klein-4b"
    for part in ("tokenizer", "text_encoder", "transformer", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(b"not what it says")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with start_server(tmp_path / "data") as server:
        assert server.process.wait(timeout=60) == 1
        assert "The server stops: " in server.log
        assert "tokenizer.json is not a tokenizer" in server.log
        assert server.stdout == ""
