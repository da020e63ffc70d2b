"""A stand-in for a judge's service on this machine, and small classifiers on disk."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Service:
    """Answers by a script: one (status, body) per request, the last one for ever. body: the text of
    a chat answer, or bytes as they are. Keeps what it was sent.
    """

    def __init__(self):
        self.script, self.seen, self.headers = [(200, "0.5")], [], {}
        self.piece = 0
        """If not 0: bytes of the pieces an answer comes in, each followed by `delay`."""
        self.delay, self.at_once, self.most_at_once = 0.0, 0, 0
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                with service._lock:
                    service.seen.append((self.path, dict(self.headers), json.loads(sent)))
                    service.at_once += 1
                    service.most_at_once = max(service.most_at_once, service.at_once)
                    status, body = service.script[0]
                    if len(service.script) > 1:
                        service.script.pop(0)
                time.sleep(service.delay)
                with service._lock:
                    service.at_once -= 1
                if callable(body):
                    body = body(json.loads(sent)["messages"][0]["content"])
                if isinstance(body, str):
                    body = json.dumps({"choices": [{"message": {"content": body}}]}).encode()
                try:
                    self.send_response(status)
                    for name, value in service.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    size = service.piece or len(body) or 1
                    for start in range(0, len(body), size):
                        self.wfile.write(body[start : start + size])
                        time.sleep(service.delay if service.piece else 0.0)
                except OSError:  # the judge lost its patience
                    pass

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def service(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Service()
    yield running
    running.close()
