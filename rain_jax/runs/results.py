"""Results files: what a line has to hold, each answer counted once, and whose files they are.

Lines are written by `directory.Run.append`; here they are checked, read and counted. A results file
holds results and nothing else. What it belongs to stands beside it, in a file
`.origin`: the digest of the run's manifest, and then a digest of every line that the run wrote.
A file none of whose lines is known there is another run's. Lines may be removed, and are made
again; directories of versions that kept no origin (no `layout` in the manifest) are read as before.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rain_jax.runs.files import RunError, read_json, read_lines, replace_text

MANIFEST, RESULTS, ORIGIN = "manifest.json", "results.jsonl", ".origin"
LAYOUT = 2  # of a directory whose results have origins

_TEXTS = ("id", "task", "method", "prompt", "response")
_LARGEST = 1e15  # of a count or of seconds; sums of them stay exact

Check = Callable[[Mapping[str, Any]], str]


def answer_of(line: Mapping[str, Any]) -> str:
  """The whole answer of a result, a prefill before what the model wrote."""
  return line.get("prefill", "") + line["response"]


def key_of(line: Mapping[str, Any]) -> tuple[str, str, str]:
  """Which response a line is about: task, id, method."""
  return line["task"], line["id"], line["method"]


def check_response(line: Mapping[str, Any]) -> str:
  """What is wrong with a line of a run's results, "" if nothing is; other fields are free."""
  for name in _TEXTS:
    if not isinstance(line.get(name), str):
      return f"{name}={_shown(line.get(name))}, expected text"
  for name in ("finish_reason", "goal", "error", "system", "prefill", "reasoning"):
    if name in line and not isinstance(line[name], str):
      return f"{name}={_shown(line[name])}, expected text"
  verdict = line.get("verdict")
  if verdict is not None and not (_is_number(verdict) and -1 <= verdict <= 1):
    return f"verdict={_shown(verdict)}, expected null or a number from -1 to 1"
  for name in ("seconds", "log_likelihood"):
    if name in line and not _is_number(line[name]):
      return f"{name}={_shown(line[name])}, expected a number"
  for name, fits, expected in (
    ("counters", lambda v: isinstance(v, bool) or _is_number(v), "numbers"),
    ("judged", lambda v: isinstance(v, bool), "answers"),
  ):
    held = line.get(name, {})
    if not isinstance(held, dict) or not all(map(fits, held.values())):
      return f"{name}={_shown(held)}, expected {expected} by name"
  history = line.get("history", [])
  if (
    not isinstance(history, list)
    or len(history) % 2
    or not all(isinstance(said, str) for said in history)
  ):
    return f"history={_shown(history)}, expected texts of user and assistant in turn"
  return ""


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and abs(value) < _LARGEST


def _shown(value: Any) -> str:
  return repr(value)[:40]


def file_of(process: int, processes: int) -> str:
  """The name of a process's results file."""
  return RESULTS if processes == 1 else f"results-{process}.jsonl"


def files(path: pathlib.Path) -> list[pathlib.Path]:
  """The results files that are there, the single process's first."""
  found = [p for p in path.glob("results*.jsonl") if re.fullmatch(r"results(-\d+)?\.jsonl", p.name)]
  number = lambda p: int(p.stem.partition("-")[2] or -1)
  return sorted(found, key=number)


def distinct(lines: Iterable[dict]) -> list[dict]:
  """The lines without later ones of the same response; those that are no responses all stay."""
  found: dict[Any, dict] = {}
  for place, line in enumerate(lines):
    known = all(name in line for name in ("task", "id", "method"))
    found.setdefault(key_of(line) if known else place, line)
  return list(found.values())


def read(path: pathlib.Path, manifest: Mapping[str, Any] | None, check: Check) -> list[dict]:
  """All lines of all results files of a directory.

  Args:
    path: the directory.
    manifest: the run's; None where there is none, and so no origin to compare.
    check: see `files.read_lines`.

  Raises:
    RunError: a line that is no result, or a file that is another run's.
  """
  lines = []
  for file in files(path):
    lines += read_lines(file, check)
    if manifest is not None and "layout" in manifest:
      _check_origin(file, digest_of(manifest))
  return lines


def digest_of(manifest: Mapping[str, Any]) -> str:
  """The sha256, in hex, of what a manifest says, however it is laid out."""
  return _sha256(json.dumps(manifest, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _line_digest(row: bytes) -> str:
  return _sha256(row.strip())[:16]


def _check_origin(file: pathlib.Path, manifest: str) -> None:
  rows = [row for row in file.read_bytes().split(b"\n") if row.strip()]
  if not rows:
    return
  try:
    of, *known = file.with_suffix(ORIGIN).read_text("utf-8").split()
  except (OSError, ValueError):
    raise RunError(
      f"{file}: {file.stem}{ORIGIN} is missing or damaged, which says what run the results are of;"
      " put it back, or choose another --workdir."
    ) from None
  if of != manifest:
    raise RunError(
      f"{file}: made with another {MANIFEST} than the one beside it; put the run's own back, or"
      " choose another --workdir."
    )
  digests = set(known)
  if not any(_line_digest(row) in digests for row in rows):
    raise RunError(
      f"{file}: results of another run, by {file.stem}{ORIGIN}; put the run's own back, or choose"
      " another --workdir."
    )


class Origin:
  """The origin of one results file, kept by the process that writes the file."""

  def __init__(self, file: pathlib.Path, manifest: Mapping[str, Any]):
    self._path = file.with_suffix(ORIGIN)
    self._manifest = digest_of(manifest) if "layout" in manifest else ""
    self._begun = self._path.is_file() and self._path.read_bytes().startswith(
      self._manifest.encode()
    )

  def add(self, row: bytes) -> None:
    """Notes a line that is about to be written.

    Raises:
      OSError: it cannot be noted.
    """
    if not self._manifest:
      return
    digest = _line_digest(row)
    if not self._begun:
      replace_text(self._path, f"{self._manifest}\n{digest}\n")
      self._begun = True
      return
    with open(self._path, "ab", buffering=0) as file:
      # A line of its own, whatever a kill or a full disk left before it.
      data = f"\n{digest}\n".encode()
      while data:
        data = data[os.write(file.fileno(), data) :]


def read_manifest(path: pathlib.Path) -> dict[str, Any] | None:
  """The manifest of a directory, of a run or an attack; None if there is none.

  Raises:
    RunError: it is damaged.
  """
  file = path / MANIFEST
  if not file.is_file():
    return None
  manifest = read_json(file)
  if not isinstance(manifest.get("config"), dict):
    raise RunError(f"{file}: holds no config; put a whole copy of it back.")
  return manifest
