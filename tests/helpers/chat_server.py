"""A local chat completion server that misbehaves as it is told, and a judge that asks it."""

import contextlib
import http.server
import json
import threading

from rain_jax.judges.endpoint import EndpointJudge


def reply(text):
  return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Server:
  """Answers each request with the next of its acts, the last one for ever.

  An act is bytes (a body with status 200), a number (a status), a pair of status and headers,
  or "hang" (says nothing), "drip" (a byte now and then), "drop" (hangs up), "half" (hangs up in
  the middle of a body), "headers" (a header now and then), "continue" (100 Continue, for ever),
  "huge" (a body that does not end), "chunk" (a chunk of negative size). Asked for a tunnel it notes where to, and refuses.
  """

  def __init__(self, acts):
    self.acts, self.seen, self.tunnels = list(acts), [], []
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        outer.seen.append((dict(self.headers), json.loads(body)))
        act = outer.acts.pop(0) if len(outer.acts) > 1 else outer.acts[0]
        with contextlib.suppress(OSError):
          self.play(act)

      do_GET = do_POST

      def do_CONNECT(self):
        outer.tunnels.append((self.path, self.headers["Proxy-Authorization"]))
        self.head(403, {"Content-Length": "0"})

      def play(self, act):
        if act == "drop":
          self.connection.close()
        elif act == "hang":
          outer.over.wait(5)
        elif act == "headers":
          self.wfile.write(b"HTTP/1.1 200 OK\r\n")
          while not outer.over.wait(0.05):
            self.wfile.write(b"X-More: 1\r\n")
            self.wfile.flush()
        elif act == "continue":
          while not outer.over.is_set():
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif act == "huge":
          self.head(200, {})
          while not outer.over.is_set():
            self.wfile.write(b" " * 65536)
        elif act == "chunk":
          self.head(200, {"Transfer-Encoding": "chunked"})
          self.wfile.write(b"-5\r\nyes")
        elif act in ("drip", "half"):
          self.head(200, {"Content-Length": "1000"})
          while act == "drip" and not outer.over.wait(0.05):
            self.wfile.write(b" ")
            self.wfile.flush()
        else:
          status, headers = act if isinstance(act, tuple) else (act, {})
          headers = dict(headers)
          body = headers.pop("body", b"") if isinstance(status, int) else status
          self.head(
            status if isinstance(status, int) else 200,
            {"Content-Length": str(len(body)), **headers},
          )
          self.wfile.write(body)

      def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
          self.send_header(name, value)
        self.end_headers()

      def log_message(self, *args):
        pass

    self.over = threading.Event()
    self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.http.daemon_threads = True
    self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

  def __enter__(self):
    threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
    return self

  def __exit__(self, *args):
    self.over.set()
    self.http.shutdown()
    self.http.server_close()


def settings_of(server, **changes):
  settings = {"url": server.url, "model": "judge-1", "key": "", "timeout": 5.0}
  return {**settings, "retries": 2, "budget": 0, "cache": "", **changes}


def judge_of(server, waits=None, **changes):
  waits = [] if waits is None else waits
  return EndpointJudge("harmless", settings_of(server, **changes), waits.append)
