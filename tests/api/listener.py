"""Be the web that image URLs lead to: an HTTP server on loopback that notes who asked for what."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "images.test.pem"  # for the name images.test, with its key

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(slots=True)
class Listener:
    """What one server answers by path, and the (host header, path) of each request it got."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    hits: list[tuple[str, str]] = field(default_factory=list)

    def serve(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> str:
        """Answer `path` from now on; return its URL under the name images.test."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"content_length": str(len(body)), **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(body)

        return self.answer(path, answer)

    def answer(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return f"http://images.test:{self.port}{path}"


@contextmanager
def listening(*, with_tls: bool = False) -> Iterator[Listener]:
    """Run a listener on 127.0.0.1."""
    listener = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listener.hits.append((self.headers["host"], self.path))
            listener.answers[self.path](self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hangs up early is part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    listener.port = server.server_port
    if with_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield listener
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
