"""What a run was made with, as its directory remembers it, and whether a start is of the same run."""

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.methods.session import SessionConfig
from rain_jax.methods.verdict_model import GUARD, REWARD
from rain_jax.models.checkpoint import fingerprint
from rain_jax.models.loading import LoadedModel, folder_of
from rain_jax.runs.files import RunError
from rain_jax.runs.results import MANIFEST
from rain_jax.runs.versions import versions
from rain_jax.tasks import Record
from rain_jax.text.formats import Format
from rain_jax.types import DataError

# Parts of a manifest that must stay as they were, and what is said of one that has not.
_LASTING = {
  "config": "another config",
  "model": "another model",
  "templates": "other preference templates",
  "calibration": "another calibration",
  "formats": "other prompt formats",
  "prompts": "other prompts",
  "tokenizer": "another tokenizer",
  "chat": "another chat template",
  "helpers": "another embedder, guard or model of verdicts",
}
# Of these, what older versions did not keep: of runs, of attacks.
_LATER = ("tokenizer", "chat", "helpers")
_LATER_ATTACKS = (*_LATER, "templates", "formats", "prompts")
# Where a run is computed, not what: it may change from one start to the next.
_PLACES = ("mesh",)
# Keys that a configuration of an older version lacks, with the value that says the same.
_LATER_KEYS = {
  "calibration": "",
  "prompts": {"bad_rows": "refuse", "behaviors": ""},
  "format": {"thinking": "", "think_end": None},
  "limits": {"max_thought": SessionConfig.max_thought},
  "model": {"revision": "", "adapter": ""},
  "verdict": {"model": "", "kind": "preference"},
}
# Likewise of a format's, with their defaults.
_LATER_FORMAT = {
  name: getattr(Format(), name) for name in ("template_kwargs", "thinking", "think_end")
}
# What readers of a run take from its manifest, with the kind of each; of lists, texts.
_READ: Mapping[str, type] = {
  **dict.fromkeys(("model.path", "config.preference", "config.judge", "config.format.name"), str),
  **dict.fromkeys(("config.search.variant", "config.prompts.text", "config.prompts.path"), str),
  **dict.fromkeys(("config.prompts.column", "config.prompts.suffixes"), str),
  **dict.fromkeys(("config.prompts.limit", "config.seed"), int),
  **dict.fromkeys(("config.tasks", "config.methods"), list),
  **dict.fromkeys(("versions", "formats"), dict),
}
_SHOWN = 5  # differences that an error lists
# Spaces, digits, case, scripts, escapes: what tokenizers treat in different ways.
_PROBES = ("The cat's 3.14 mats,\n\n  and\tnone;", "Ünïcode é 漢字 😀 \u200b", "  HTTP://x_y=7\r\n")
_CONVERSATIONS = (("a",), ("a", "b", "c"))
_ANY_DAY = "2001-02-03T04:05:06"
_LOG = logging.getLogger(__name__)


def make(
  config: Mapping[str, Any],
  models: LoadedModel | Sequence[LoadedModel],
  settings: Mapping[str, SessionConfig],
  records: Mapping[str, Sequence[Record]],
) -> dict[str, Any]:
  """The manifest of a run, or of an attack, which may have several models; JSON values.

  Args:
    config: nested plain values.
    models: the run's; the first one's tokenizer reads the prompts.
    settings: each task's.
    records: each task's prompts.
  """
  each = lambda part: {name: dataclasses.asdict(part(s)) for name, s in settings.items()}
  of = lambda model: {"path": model.name, "fingerprint": model.fingerprint}
  first = models if isinstance(models, LoadedModel) else models[0]
  formats = each(lambda session_config: session_config.format)
  chats = {name: s.format for name, s in settings.items() if s.format.chat}
  calibrations = {
    name: dataclasses.asdict(s.calibration) for name, s in settings.items() if s.calibration
  }
  return {
    "config": config,
    "model": of(models) if isinstance(models, LoadedModel) else [of(model) for model in models],
    "versions": versions(),
    "templates": each(lambda session_config: session_config.preference),
    # A template's day is the run's, see `started`.
    "formats": {name: _lasting(fields) for name, fields in formats.items()},
    "search": each(lambda session_config: session_config.search),
    "prompts": {name: _records_digest(some) for name, some in records.items()},
    "tokenizer": {"sha256": tokenizer_digest(first.tokenizer)},
    "chat": {name: {"sha256": chat_digest(f, first.tokenizer)} for name, f in chats.items()},
    "helpers": _helpers(config),
    **({"calibration": calibrations} if calibrations else {}),
    "started": datetime.datetime.now().isoformat(timespec="seconds"),
  }


def _lasting(fields: Mapping[str, Any]) -> dict[str, Any]:
  """A format's fields without the time; later ones only where they say something."""
  said = lambda name, value: name not in _LATER_FORMAT or value != _LATER_FORMAT[name]
  return {name: value for name, value in fields.items() if name != "now" and said(name, value)}


def _records_digest(records: Sequence[Record]) -> dict[str, Any]:
  """What tells prompts from others that lie in the same files."""
  return {"count": len(records), "sha256": _digest([_said(record) for record in records])}


def _said(record: Record) -> dict[str, Any]:
  """A record's fields; those that older versions did not have, only where they say something."""
  fields = dataclasses.asdict(record)
  return {k: v for k, v in fields.items() if v or k not in ("system", "prefill")}


def _digest(value: Any) -> str:
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
  """The sha256, in hex, of a tokenizer: its tokens, merges, special tokens, and what it does.

  Versions of the tokenizer's library lay out its file in different ways; this stays the same.

  Args:
    tokenizer: of transformers.
  """
  backend = getattr(tokenizer, "backend_tokenizer", None)
  model = json.loads(backend.to_str()).get("model", {}) if backend is not None else {}
  merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
  added = tokenizer.added_tokens_decoder
  encoded = [list(tokenizer(text).input_ids) for text in _PROBES]
  return _digest(
    {
      "tokens": sorted(tokenizer.get_vocab().items()),
      "scores": [piece for piece in model.get("vocab", []) if isinstance(piece, list)],
      "merges": merges,
      "added": {n: [t.content, t.special, t.lstrip, t.rstrip] for n, t in added.items()},
      "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id],
      "encoded": encoded,
      "decoded": [tokenizer.decode(ids) for ids in encoded],
    }
  )


def chat_digest(form: Format, tokenizer: Any) -> str:
  """The sha256, in hex, of what a chat template makes of conversations on a certain day."""
  rendered = []
  for said in _CONVERSATIONS:
    try:
      rendered.append(dataclasses.replace(form, now=_ANY_DAY).rendered(tokenizer, said))
    except DataError as error:  # of several turns, perhaps; a prompt that needs it is told
      rendered.append(str(error))
  return _digest(rendered)


def _helpers(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fingerprints of the checkpoints, besides the model, that a response depends on."""
  guard = config.get("guard", {}).get("judge", "") if "guard" in config["methods"] else ""
  embedder = config["embedder"]
  encoder = embedder["path"] if embedder["name"] != "hidden" else ""
  judge = config.get("verdict", {}).get("model", "")
  paths = {"embedder": encoder, "guard": guard.partition("=")[2], "verdict": judge}
  return {name: fingerprint(folder_of(path)) for name, path in paths.items() if path}


def fault(manifest: Mapping[str, Any]) -> str:
  """What of a run's manifest its readers cannot read, with what they expect; "" if nothing."""
  for name, kind in _READ.items():
    value: Any = manifest
    for key in name.split("."):
      value = value.get(key) if isinstance(value, dict) else None
    texts = not isinstance(value, list) or all(isinstance(one, str) for one in value)
    if type(value) is not kind or not texts:
      expected = {str: "text", int: "a whole number", list: "a list of texts", dict: "an object"}
      return f"{name}={value!r:.40}, expected {expected[kind]}"
  left_out = manifest.get("left_out", {})
  if not isinstance(left_out, dict) or not all(isinstance(v, list) for v in left_out.values()):
    return f"left_out={left_out!r:.40}, expected lists by task"
  return ""


def verdicts_by(manifest: Mapping[str, Any]) -> str:
  """The model that gave a run's verdicts in place of its own, and as what; "" for self-evaluation."""
  section = manifest["config"].get("verdict")
  name, kind = (
    (section.get("model"), section.get("kind")) if isinstance(section, Mapping) else ("", "")
  )
  if not isinstance(name, str) or not name:
    return ""
  return f"{name} ({kind})" if kind in (GUARD, REWARD) else name


def dated(settings: Mapping[str, SessionConfig], kept: Mapping[str, Any]) -> dict[str, Any]:
  """Settings whose chat templates take the time of the run's first start for now.

  Args:
    settings: each task's.
    kept: the run's manifest; an older one has no time, and templates ask the clock.
  """
  now = kept.get("started", "")
  try:
    if "started" in kept:
      datetime.datetime.fromisoformat(now)
  except (TypeError, ValueError):
    raise RunError(
      f"{MANIFEST}: started={now!r:.40} is no time; put a whole copy of it back."
    ) from None
  return {
    name: dataclasses.replace(s, format=dataclasses.replace(s.format, now=now))
    if s.format.chat
    else s
    for name, s in settings.items()
  }


def check(path: pathlib.Path, old: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
  """Compares what a directory was begun with and what a start has.

  Raises:
    RunError: it is another run; the message shows the difference.
  """
  later = _LATER_ATTACKS if "attack" in manifest.get("config", {}) else _LATER
  unknown = []
  for part, other in _LASTING.items():
    if part in manifest and part not in old:
      if part in later:
        unknown += [part] * bool(manifest[part])
        continue
      raise RunError(
        f"{path / MANIFEST}: of an older version, which did not keep its {part}; choose another"
        " --workdir."
      )
    before, now = old.get(part), manifest.get(part)
    if part == "config":
      before, now = _completed(before or {}), _completed(now or {})
      if before["calibration"] and now["calibration"]:
        # The manifest has what is in the file, which may lie elsewhere by now.
        before |= {"calibration": now["calibration"]}
    changed = difference(before, now)
    if changed:
      raise RunError(f"{path} holds a run of {other} ({changed}); choose another --workdir.")
  if unknown:
    _LOG.warning(
      "%s: of an older version, which did not keep %s: whether they are the same is not known",
      path / MANIFEST,
      ", ".join(unknown),
    )


def _completed(config: Mapping[str, Any], later: Mapping[str, Any] = _LATER_KEYS) -> dict[str, Any]:
  """A configuration with the keys that it did not have yet, as they change nothing."""
  found = dict(config)
  for key, value in later.items():
    if isinstance(value, Mapping):
      old = found.get(key, {})
      found[key] = _completed(old, value) if isinstance(old, Mapping) else old
    else:
      found.setdefault(key, value)
  return found


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
