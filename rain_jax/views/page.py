"""Pages that stand alone: one file, no network, and text that can never become markup.

What a model wrote is hostile. It enters a page as JSON that no parser of HTML can read
out of (`as_data`) or escaped (`text`); and a content security policy lets nothing run or
load but the page's own style and script, by their hashes.
"""

import base64
import hashlib
import html
import json
import pathlib
from typing import Any


def text(value: Any) -> str:
  """Text for a page's body or an attribute; what a browser would not show is spelled out."""
  return html.escape(visible(str(value)))


def visible(value: str) -> str:
  """The text with control characters, and those that turn the writing round, as escapes."""
  keep = lambda c: c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}"
  return "".join(map(keep, value))


def as_data(value: Any) -> str:
  """JSON that may stand in a script element: ASCII, without <, > and &."""
  line = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
  for character in "<>&":
    line = line.replace(character, f"\\u{ord(character):04x}")
  return line


def document(title: str, body: str, style: str, script: str = "", data: Any = None) -> str:
  """A whole page.

  Args:
    title: plain text.
    body: markup; what goes into it has been through `text`.
    style: style sheet.
    script: runs at the end of the body.
    data: JSON values that the script finds in the element with the id `data`.
  """
  policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_hash(style)}"
  tail = ""
  if script:
    policy += f"; script-src {_hash(script)}"
    tail = (
      f'<script type="application/json" id="data">{as_data(data)}</script>\n'
      f"<script>{script}</script>\n"
    )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n{tail}"
    "</body>\n</html>\n"
  )


def report(title: str, body: str) -> str:
  """A whole page in the style of reports, without a script; see `document`."""
  style = (pathlib.Path(__file__).parent / "run.css").read_text(encoding="utf-8")
  return document(title, body, style)


def _hash(source: str) -> str:
  digest = hashlib.sha256(source.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
