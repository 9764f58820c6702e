"""Serves one page of HTML on this machine alone, with the standard library. Knows nothing of what is in it."""

from __future__ import annotations

import errno
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click

from latentkv.errors import OptionError, sentence

HOST = "127.0.0.1"


def serve_page(page: str, port: int, *, open_it: bool) -> None:
    """Serve `page` at / until Ctrl-C, and tell its address; port 0 is any free one.

    Raises OptionError for a port that is taken.
    """
    server = _server(page.encode("utf-8"), port)
    address = f"http://{HOST}:{server.server_address[1]}/"
    click.echo(f"{address} (Ctrl-C ends)")
    if open_it:
        import webbrowser

        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo(err=True)
    finally:
        server.server_close()


def _server(page: bytes, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        """Knows the page and nothing else."""

        def do_GET(self) -> None:
            """Answer with the page; its state is behind # and never sent."""
            if self.path.partition("?")[0] not in ("/", "/index.html"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal shows the address."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "one in use" if error.errno == errno.EADDRINUSE else "one that needs more rights"
        remedy = "Give another one; --port 0 takes any that is free."
        raise OptionError(sentence(f"--port {port}", expected="a free port", got=reason, remedy=remedy)) from error
