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
  the middle of a body).
  """

  def __init__(self, acts):
    self.acts, self.seen = list(acts), []
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        outer.seen.append((dict(self.headers), json.loads(body)))
        act = outer.acts.pop(0) if len(outer.acts) > 1 else outer.acts[0]
        with contextlib.suppress(OSError):
          self.play(act)

      do_GET = do_POST

      def play(self, act):
        if act == "drop":
          self.connection.close()
        elif act == "hang":
          outer.over.wait(5)
        elif act in ("drip", "half"):
          self.head(200, {"Content-Length": "1000"})
          while act == "drip" and not outer.over.wait(0.05):
            self.wfile.write(b" ")
            self.wfile.flush()
        else:
          status, headers = act if isinstance(act, tuple) else (act, {})
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


def judge_of(server, waits=None, **changes):
  settings = {
    "url": server.url,
    "model": "judge-1",
    "key": "",
    "timeout": 5.0,
    "retries": 2,
    "budget": 0,
    "cache": "",
    **changes,
  }
  return EndpointJudge("harmless", settings, (waits if waits is not None else []).append)
