"""A working directory: manifest, results, resume, summary.

Results are appended one whole line at a time and flushed, so that a killed run loses at
most the line it was writing; opening the directory again repairs that line and says what
is done already. A run of several processes has a results file for each; whoever reads
the directory reads them all, so a run may go on with fewer or more processes.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from rain_jax.methods.recording import Recording
from rain_jax.runs import locks, results
from rain_jax.runs import manifest as manifests
from rain_jax.runs.files import (
  PART,
  RunError,
  Stopped,
  end_last_line,
  read_json,
  replace_json,
  replace_text,
  sync_folder,
)
from rain_jax.runs.manifest import difference
from rain_jax.runs.results import LAYOUT, MANIFEST, ORIGIN, RESULTS, Check, check_response

__all__ = ["RunError", "Stopped", "difference", "replace_text", "MANIFEST", "RESULTS"]

SUMMARY, JUDGED = "summary.json", "judged.jsonl"
RECORDINGS = "recordings"  # of searches, one file each
_OLD_RECORDINGS = "trees"  # as earlier versions called the folder and the recording in a file
_LOG = logging.getLogger(__name__)


class Run:
  """Results of one configuration in one directory, as one of its processes writes them.

  Attributes:
    path: the directory.
    manifest: what it was begun with.
    results: all results, those of other processes as they were when this one began.
  """

  def __init__(
    self, path: pathlib.Path, lock: BinaryIO, manifest: Mapping[str, Any], file: BinaryIO, name: str
  ):
    self.path, self.manifest = path, manifest
    self.results: list[dict[str, Any]] = []
    self._lock, self._file, self._name = lock, file, name
    self._origin = results.Origin(path / name, manifest)

  @classmethod
  def open(
    cls,
    workdir: str,
    manifest: Mapping[str, Any],
    process: int = 0,
    processes: int = 1,
    check: Check = check_response,
  ) -> "Run":
    """Begins a run, or takes one up again.

    Args:
      workdir: the directory; made if it is not there.
      manifest: JSON values; config, model, templates, formats, prompts and tokenizer, as far
        as it has them, must be what they were when the directory got its first result, the mesh
        aside.
      process: which process of the run this is.
      processes: how many there are; more than one write `results-<process>.jsonl` each.
      check: what is wrong with a line of results, "" if nothing is.

    Raises:
      RunError: the directory cannot be made or written, another start is at work in it, it
        belongs to another configuration (the message shows the difference), or its results and
        its manifest do not belong together.
    """
    path = pathlib.Path(workdir)
    name = results.file_of(process, processes)
    with contextlib.ExitStack() as opened:
      try:
        path.mkdir(parents=True, exist_ok=True)
        lock = opened.enter_context(locks.enter(path, processes, lambda: _begin(path, manifest)))
        kept = results.read_manifest(path)
        if kept is None:
          raise RunError(f"{path}: {MANIFEST} was taken away; put it back and start again.")
        manifests.check(path, kept, manifest)
        # Unbuffered: a line that could not be written must not come out later, out of place.
        file = opened.enter_context(open(path / name, "ab", buffering=0))
        if not locks.lock_alone(file):
          raise RunError(
            f"{path / name}: another process writes it; stop that one, or choose another --workdir."
          )
        end_last_line(path / name)
        sync_folder(path)
        run = cls(path, lock, kept, file, name)
        run.results = _all(path, kept, check)
        opened.pop_all()
        return run
      except OSError as error:
        where = error.filename or workdir
        raise RunError(f"{where}: {error.strerror}; choose another --workdir.") from None

  def append(self, line: Mapping[str, Any]) -> None:
    """Adds one result; it is on disk when this returns.

    Raises:
      RunError: it cannot be written; lines written before are whole.
    """
    where = self.path / self._name
    file = self._file.fileno()
    # Half a character, which a prompt in JSON may hold, is escaped as JSON escapes it.
    data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode(
      "utf-8", "backslashreplace"
    )
    try:
      if not os.path.samestat(os.stat(where), os.fstat(file)):
        raise RunError(
          f"{where}: replaced while the run was writing it; put it back and start again."
        )
      size = os.fstat(file).st_size
    except OSError as error:
      raise RunError(
        f"{where}: {error.strerror}; put the directory back and start again."
      ) from None
    try:
      self._origin.add(data)
      while data:  # a disk that is nearly full takes a part, then refuses the rest
        data = data[os.write(file, data) :]
      os.fsync(file)
    except OSError as error:
      with contextlib.suppress(OSError):  # or the next start cuts it off
        os.truncate(file, size)
      raise RunError(
        f"{where}: {error.strerror}; the {len(self.results)} results so far are kept, start"
        " again when there is room."
      ) from None
    self.results.append(dict(line))

  def keep_recording(
    self, task: str, method: str, prompt_id: str, recording: Mapping[str, Any]
  ) -> None:
    """Keeps a recorded search; an earlier one of the same prompt and method is replaced.

    Raises:
      RunError: it cannot be written.
    """
    folder = self.path / RECORDINGS
    # Ids are the user's own text, and need not be names of files.
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", prompt_id)[:40]
    digest = hashlib.sha256(prompt_id.encode(errors="backslashreplace")).hexdigest()[:8]
    kept = {"task": task, "method": method, "id": prompt_id, "recording": recording}
    try:
      folder.mkdir(exist_ok=True)
      replace_text(folder / f"{task}-{method}-{readable}-{digest}.json", json.dumps(kept))
    except OSError as error:
      raise RunError(f"{folder}: {error.strerror}; all results are kept.") from None

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes the summary, whole or not at all."""
    try:
      replace_json(self.path / SUMMARY, summary)
    except OSError as error:
      raise RunError(f"{self.path / SUMMARY}: {error.strerror}; all results are kept.") from None

  def close(self) -> None:
    """Leaves the directory to others."""
    self._file.close()
    self._lock.close()


def _begin(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
  """What the first process of a start does, while no other is in the directory."""
  old = path / MANIFEST
  for pattern in (f".{MANIFEST}.*{PART}", f".results*{ORIGIN}.*{PART}"):  # of killed processes
    for left in path.glob(pattern):
      left.unlink(missing_ok=True)
  if not old.is_file() or not _begun(path):
    orphans = [p.name for p in (*results.files(path), path / JUDGED) if _holds_something(p)]
    if orphans:
      raise RunError(
        f"{path}: {orphans[0]} without {MANIFEST}, which says what it is of; put that back, or"
        " choose another --workdir."
      )
    # What an error ended before its first result does not bind the next.
    replace_json(old, {**manifest, "layout": LAYOUT})
  for file in results.files(path):
    end_last_line(file)


def _begun(path: pathlib.Path) -> bool:
  """Whether a directory holds anything of a run's work."""
  lines = results.files(path)
  for file in path.iterdir():
    aside = file.name == MANIFEST or file.name.startswith(".") or file.suffix == ORIGIN
    if aside or file.match("metrics*.jsonl") or file.match("manifest.*.part"):
      continue
    if file not in lines or _holds_something(file):
      return True
  return False


def _holds_something(path: pathlib.Path) -> bool:
  return path.is_file() and bool(path.read_bytes().strip())


def _all(path: pathlib.Path, manifest: Mapping[str, Any] | None, check: Check) -> list[dict]:
  lines = results.read(path, manifest, check)
  once = results.distinct(lines)
  if len(once) < len(lines):
    _LOG.warning(
      "%s: %d responses are there again; the first of each counts", path, len(lines) - len(once)
    )
  return once


def read_results(workdir: str) -> list[dict]:
  """The results in a working directory, of all its processes, each response once.

  Raises:
    RunError: a line that is no result, or files that do not belong together.
  """
  path = pathlib.Path(workdir)
  manifest = results.read_manifest(path)
  attack = manifest is not None and "attack" in manifest["config"]
  return _all(path, manifest, (lambda line: "") if attack else check_response)


def has_summary(workdir: str) -> bool:
  """Whether a run has ended; only then does it have a summary."""
  return (pathlib.Path(workdir) / SUMMARY).is_file()


def write_summary(workdir: str, summary: Mapping[str, Any]) -> None:
  """Writes a run's summary, whole or not at all."""
  replace_json(pathlib.Path(workdir) / SUMMARY, summary)


def read_manifest(workdir: str) -> dict[str, Any]:
  """The manifest of a run.

  Raises:
    RunError: there is none, it cannot be read, or it is an attack's, which has no responses.
  """
  manifest = results.read_manifest(pathlib.Path(workdir))
  if manifest is None:
    raise RunError(f"{workdir}: no {MANIFEST} there; give the --workdir of a run.")
  if "attack" in manifest["config"]:
    raise RunError(
      f"{workdir} holds an attack, which has no responses; give the --workdir of a run of"
      " generate.py on its attack.json."
    )
  wrong = manifests.fault(manifest)
  if wrong:
    raise RunError(f"{pathlib.Path(workdir) / MANIFEST}: {wrong}; put a whole copy of it back.")
  return manifest


@dataclasses.dataclass(frozen=True)
class StoredRecording:
  """A recorded search in a run's directory: file, task, method, prompt id and the search."""

  path: pathlib.Path
  task: str
  method: str
  id: str
  recording: Recording


def recorded(workdir: str) -> Iterator[StoredRecording]:
  """The recorded searches of a run.

  Raises:
    RunError: a file cannot be read, or is no recorded search.
  """
  folders = (pathlib.Path(workdir) / name for name in (RECORDINGS, _OLD_RECORDINGS))
  for path in sorted(path for folder in folders for path in folder.glob("*.json")):
    value = read_json(path)
    try:
      found = value["tree"] if "tree" in value else value["recording"]
      method = value.get("method", "rain")  # the one that could be watched at first
      yield StoredRecording(path, value["task"], method, value["id"], Recording.from_json(found))
    except (KeyError, TypeError):
      raise RunError(f"{path}: not a recorded search; remove the file.") from None
