"""A working directory: manifest, results, resume, summary.

Results are appended one whole line at a time and flushed, so that a killed run loses at
most the line it was writing; opening the directory again repairs that line and says what
is done already. A run of several processes has a results file for each; whoever reads
the directory reads them all, so a run may go on with fewer or more processes.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rain_jax.methods.recording import Recording
from rain_jax.types import Stopped as Stopped

MANIFEST, RESULTS, SUMMARY = "manifest.json", "results.jsonl", "summary.json"
RECORDINGS = "recordings"  # of searches, one file each
_OLD_RECORDINGS = "trees"  # as earlier versions called the folder and the recording in a file
# Parts of a manifest that must stay as they were, and what is said of one that has not.
_LASTING = {
  "config": "another config",
  "model": "another model",
  "templates": "other preference templates",
  "calibration": "another calibration",
  "formats": "other prompt formats",
  "prompts": "other prompts",
}
# Where a run is computed, not what: it may change from one start to the next.
_PLACES = ("mesh",)
_SHOWN = 5  # differences that an error lists


class RunError(ValueError):
  """A working directory that cannot be used; one line that says what to do."""


class Run:
  """Results of one configuration in one directory, as one of its processes writes them.

  Attributes:
    path: the directory.
    results: all results, those of other processes as they were when this one began.
  """

  def __init__(self, path: pathlib.Path, process: int, processes: int):
    self.path = path
    self._name = _file_of(process, processes)
    # Unbuffered: a line that could not be written must not come out later, out of place.
    self._file = open(path / self._name, "ab", buffering=0)
    try:
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise RunError(
          f"{path / self._name}: another process writes it; stop that one, or choose"
          " another --workdir."
        ) from None
      for name in _files(path):
        # Files of processes that this run has no longer are the first one's to repair.
        orphaned = process == 0 and name not in [_file_of(i, processes) for i in range(processes)]
        if name == self._name or orphaned:
          cut_half_line(path / name)
      self.results = _read_all(path)
    except BaseException:
      self._file.close()
      raise

  @classmethod
  def open(
    cls, workdir: str, manifest: Mapping[str, Any], process: int = 0, processes: int = 1
  ) -> "Run":
    """Begins a run, or takes one up again.

    Args:
      workdir: the directory; made if it is not there.
      manifest: JSON values; config, model, templates, formats and prompts, as far as it
        has them, must be what they were when the directory got its first result, the mesh
        aside.
      process: which process of the run this is.
      processes: how many there are; more than one write `results-<process>.jsonl` each.

    Raises:
      RunError: the directory cannot be made or written, is being written by another
        process, or belongs to another configuration (the message shows the difference).
    """
    path = pathlib.Path(workdir)
    try:
      path.mkdir(parents=True, exist_ok=True)
      if _begun(path):
        _check_manifest(path / MANIFEST, manifest)
      else:  # what an error ended before its first result does not bind the next
        _replace(path / MANIFEST, manifest)
      return cls(path, process, processes)
    except OSError as error:
      raise RunError(f"{workdir}: {error.strerror}; choose another --workdir.") from None

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

  def keep_recording(self, task: str, prompt_id: str, recording: Mapping[str, Any]) -> None:
    """Keeps a recorded search; an earlier one of the same prompt is replaced.

    Raises:
      RunError: it cannot be written.
    """
    folder = self.path / RECORDINGS
    # Ids are the user's own text, and need not be names of files.
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", prompt_id)[:40]
    digest = hashlib.sha256(prompt_id.encode(errors="backslashreplace")).hexdigest()[:8]
    kept = {"task": task, "id": prompt_id, "recording": recording}
    try:
      folder.mkdir(exist_ok=True)
      replace_text(folder / f"{task}-{readable}-{digest}.json", json.dumps(kept))
    except OSError as error:
      raise RunError(f"{folder}: {error.strerror}; all results are kept.") from None

  @contextlib.contextmanager
  def alone(self) -> Iterator[bool]:
    """Whether no other process of the run is in here, and none will be as long as this one is."""
    # Open for writing, which NFS wants of whoever locks a file for itself alone.
    with open(self.path / MANIFEST, "r+b") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield False
      else:
        yield True

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes the summary, whole or not at all."""
    try:
      _replace(self.path / SUMMARY, summary)
    except OSError as error:
      raise RunError(f"{self.path / SUMMARY}: {error.strerror}; all results are kept.") from None

  def close(self) -> None:
    """Closes the results file."""
    self._file.close()


def read_results(workdir: str) -> list[dict]:
  """The results in a working directory, of all its processes, half-written lines left out."""
  return _read_all(pathlib.Path(workdir))


def _file_of(process: int, processes: int) -> str:
  return RESULTS if processes == 1 else f"results-{process}.jsonl"


def _files(path: pathlib.Path) -> list[str]:
  """Names of the results files that are there, the single process's first."""
  names = [p.name for p in path.glob("results*.jsonl")]
  numbered = [n for n in names if re.fullmatch(r"results-\d+\.jsonl", n)]
  number = lambda name: int(name.removeprefix("results-").removesuffix(".jsonl"))
  return [RESULTS] * (RESULTS in names) + sorted(numbered, key=number)


def _begun(path: pathlib.Path) -> bool:
  """Whether a directory holds anything of a run's work, or a process that is at it."""
  results = _files(path)
  for file in path.iterdir():
    # A part is a manifest that another process of the run is about to put there.
    if file.name == MANIFEST or file.match("metrics*.jsonl") or file.match("manifest.*.part"):
      continue
    if file.name not in results:
      return True
    with open(file, "ab") as one:
      try:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return True
      if one.tell():
        return True
  return False


def _read_all(path: pathlib.Path) -> list[dict]:
  return [line for name in _files(path) for line in read_lines(path / name)]


def write_summary(workdir: str, summary: Mapping[str, Any]) -> None:
  """Writes a run's summary, whole or not at all."""
  _replace(pathlib.Path(workdir) / SUMMARY, summary)


def read_manifest(workdir: str) -> dict[str, Any]:
  """The manifest of a run.

  Raises:
    RunError: there is none, it cannot be read, or it is an attack's, which has no responses.
  """
  path = pathlib.Path(workdir) / MANIFEST
  if not path.is_file():
    raise RunError(f"{workdir}: no {MANIFEST} there; give the --workdir of a run.")
  manifest = _read_json(path)
  if "attack" in manifest["config"]:
    raise RunError(
      f"{workdir} holds an attack, which has no responses; give the --workdir of a run of"
      " generate.py on its attack.json."
    )
  return manifest


@dataclasses.dataclass(frozen=True)
class StoredRecording:
  """A recorded search in a run's directory: file, task, prompt id and the search."""

  path: pathlib.Path
  task: str
  id: str
  recording: Recording


def recorded(workdir: str) -> Iterator[StoredRecording]:
  """The recorded searches of a run.

  Raises:
    RunError: a file cannot be read, or is no recorded search.
  """
  folders = (pathlib.Path(workdir) / name for name in (RECORDINGS, _OLD_RECORDINGS))
  for path in sorted(path for folder in folders for path in folder.glob("*.json")):
    value = _read_json(path)
    try:
      found = value["tree"] if "tree" in value else value["recording"]
      yield StoredRecording(path, value["task"], value["id"], Recording.from_json(found))
    except (KeyError, TypeError):
      raise RunError(f"{path}: not a recorded search; remove the file.") from None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError:
    raise RunError(f"{path}: not JSON; remove it if it is not needed.") from None


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file, whole or not at all."""
  part = path.with_suffix(f".{os.getpid()}.part")  # several processes may do this at once
  try:
    # Half a character, which JSON may hold and UTF-8 may not, becomes an escape.
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _replace(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _check_manifest(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
  if not path.exists():
    _replace(path, manifest)
    return
  try:
    old = json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError:
    raise RunError(f"{path}: not JSON; remove it if the results are not needed.") from None
  for part, other in _LASTING.items():
    if part in manifest and part not in old:
      raise RunError(
        f"{path}: of an older version, which did not keep its {part}; choose another --workdir."
      )
    changed = difference(old.get(part), manifest.get(part))
    if changed:
      raise RunError(f"{path.parent} holds a run of {other} ({changed}); choose another --workdir.")


def difference(before: Any, now: Any) -> str:
  """What of some JSON values has changed, the mesh aside, in one line; "" if nothing has."""
  before, now = _flat(before), _flat(json.loads(json.dumps(now)))
  changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
  changed = [k for k in changed if k.split(".")[0] not in _PLACES]
  shown = [f"{k}: {_apart(repr(before.get(k)), repr(now.get(k)))}" for k in changed[:_SHOWN]]
  if len(changed) > _SHOWN:
    shown.append(f"and {len(changed) - _SHOWN} more")
  return ", ".join(shown)


def _apart(before: str, now: str) -> str:
  """Two texts, long ones from shortly before the place where they part."""
  begin = max(0, len(os.path.commonprefix([before, now])) - 20)
  cut = lambda text: text if len(text) <= 60 else f"...{text[begin : begin + 60]}..."
  return f"{cut(before)} -> {cut(now)}"


def _flat(value: Any, name: str = "") -> dict[str, Any]:
  if not isinstance(value, Mapping):
    return {name: value}
  items = [_flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
  return {k: v for item in items for k, v in item.items()}


def read_lines(path: pathlib.Path) -> list[dict]:
  """The whole lines of a file of JSON lines; none if there is no such file.

  Raises:
    RunError: one of them is not JSON.
  """
  lines = []
  if path.exists():
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
      try:
        lines.append(json.loads(line))
      except ValueError:
        raise RunError(f"{path}, line {number}: not JSON; fix or remove the line.") from None
  return lines


def cut_half_line(path: pathlib.Path) -> None:
  """Cuts off a line that a killed run did not finish."""
  if path.exists():
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    if size < len(data):
      os.truncate(path, size)
