import pytest

from openklein.api.multipart import MAX_PARTS, Part, read_parts
from openklein.errors import InvalidRequest


def form(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + end


def test_parts_keep_their_order_names_and_bytes() -> None:
    body = form(
        b'name="prompt"\r\n\r\nh\xc3\xa9',
        b'name="images"; filename="a b.png"\r\nContent-Type: image/png\r\n\r\n\x00\r\n--y\r\n\xff',
        b'name="images"; filename=""\r\n\r\n',
        b"name=seed\r\n\r\n7",
    )
    assert read_parts(body, b"x") == [
        Part("prompt", None, b"h\xc3\xa9"),
        Part("images", "a b.png", b"\x00\r\n--y\r\n\xff"),
        Part("images", "", b""),
        Part("seed", None, b"7"),
    ]


def test_a_form_without_parts_is_a_form() -> None:
    assert read_parts(b"--x--\r\n", b"x") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not a form",
        form(b"name=prompt\r\n\r\na", end=b""),
        form(b"name=prompt\r\n\r\na", end=b"--x"),
        form(b"name=prompt\r\n\r\na", end=b"--x-"),
        form(b"name=prompt\r\n\r\na")[:20],
        form(b"\r\n\r\na"),
        form(b"filename=a\r\n\r\na"),
        b"--x\r\n\r\na\r\n--x--\r\n",
        b"--x\r\nContent-Disposition: attachment; name=a\r\n\r\na\r\n--x--\r\n",
        b"--x\r\nbad header line\r\n\r\na\r\n--x--\r\n",
        form(*[b"name=a\r\n\r\na"] * (MAX_PARTS + 1)),
    ],
)
def test_malformed_forms_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="form"):
        read_parts(body, b"x")


@pytest.mark.parametrize("boundary", [b"", b"z", b"x" * 1000])
def test_a_boundary_that_is_not_the_bodys_is_refused(boundary: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_parts(form(b"name=prompt\r\n\r\na"), boundary)
