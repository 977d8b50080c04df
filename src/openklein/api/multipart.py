"""Take a multipart form apart in memory: nothing is written to disk, no text is guessed, no loss is overlooked."""

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from openklein.errors import InvalidRequest

MAX_PARTS = 100


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form; `file_name` is None for text and "" for a file without a name."""

    name: str
    file_name: str | None
    content: bytes


def read_parts(body: bytes, boundary: bytes) -> list[Part]:
    """Return the parts of a multipart/form-data body in order; raises InvalidRequest where it is malformed."""
    collector = _Collector()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_header_field": collector.add_header_name,
                "on_header_value": collector.add_header_value,
                "on_header_end": collector.end_header,
                "on_part_data": collector.add_content,
                "on_part_end": collector.end,
                "on_end": collector.finish,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise InvalidRequest("The body is not a valid multipart form.") from error
    if not (boundary and collector.is_complete):
        raise InvalidRequest("The multipart form is cut short, or its boundary is not the one in Content-Type.")
    return collector.parts


class _Collector:
    """Gather what the parser reports; its callbacks give (buffer, start, end)."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.is_complete = False
        self.begin()

    def begin(self) -> None:
        self._name = self._value = b""
        self._disposition = b""
        self._content: list[bytes] = []

    def add_header_name(self, buffer: bytes, start: int, end: int) -> None:
        self._name += buffer[start:end]

    def add_header_value(self, buffer: bytes, start: int, end: int) -> None:
        self._value += buffer[start:end]

    def end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def add_content(self, buffer: bytes, start: int, end: int) -> None:
        self._content.append(buffer[start:end])

    def end(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequest("A part of the multipart form has no Content-Disposition: form-data with a name.")
        if len(self.parts) == MAX_PARTS:
            raise InvalidRequest(f"The multipart form has more than {MAX_PARTS} parts.")
        file_name = options.get(b"filename")
        self.parts.append(
            Part(
                name=options[b"name"].decode("utf-8", "replace"),
                file_name=None if file_name is None else file_name.decode("utf-8", "replace"),
                content=b"".join(self._content),
            )
        )

    def finish(self) -> None:
        self.is_complete = True
