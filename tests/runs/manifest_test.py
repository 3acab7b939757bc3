"""Manifests: what has changed since a run began is known, whatever file it lies in."""

import contextlib
import dataclasses
import datetime
import json
import logging

import pytest
import tokenizers
import transformers

from rain_jax.runs import directory, manifest
from rain_jax.text import dates, formats
from tests.helpers import small_runs
from tests.helpers.results import line

LLAMA = (
  "{% if not date_string is defined %}{% if strftime_now is defined %}"
  "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = 'never' %}"
  "{% endif %}{% endif %}Today: {{ date_string }} {% for m in messages %}{{ m.content }}{% endfor %}"
)
VARIABLE = "{% set f = '%A, %-d %B %Y, %H:%M' %}{{ strftime_now(f) }}{{ messages[0].content }}"
MOMENT = datetime.datetime(2025, 3, 4, 5, 6, 7)


def with_template(tokenizer, template):
  made = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
  )
  made.chat_template = template
  return made


@pytest.mark.parametrize(
  "template,says",
  [(LLAMA, "Today: 04 Mar 2025 hi"), (VARIABLE, "Tuesday, 4 March 2025, 05:06hi")],
)
def test_a_template_is_told_the_day_of_the_runs_first_start(bpe_tokenizer, template, says):
  tokenizer = with_template(bpe_tokenizer, template)
  form = dataclasses.replace(formats.find_format("chat"), now=MOMENT.isoformat())
  assert form.rendered(tokenizer, ("hi",)) == says
  today = dataclasses.replace(form, now="").rendered(tokenizer, ("hi",))
  assert today != says and str(datetime.date.today().year) in today


def test_the_day_is_formatted_as_the_clock_would():
  for c in "aAwdbBmyYHIpMSjUWVGu":
    text = dates.at(f"{{{{ strftime_now('%{c}') }}}}", MOMENT)
    assert f"'%{c}', '{MOMENT.strftime('%' + c)}'" in text
  assert dates.at("no day", MOMENT) == "no day"


@pytest.mark.parametrize(
  "edit",
  [
    lambda t: t.add_tokens(["<new>"]),
    lambda t: t.add_special_tokens({"additional_special_tokens": ["<|x|>"]}),
    lambda t: setattr(t, "eos_token", "<s>"),
    lambda t: setattr(t.backend_tokenizer, "normalizer", _lowercase()),
    lambda t: setattr(t.backend_tokenizer, "decoder", _metaspace()),
  ],
  ids=["token", "special", "end", "normalizer", "decoder"],
)
def test_an_edited_tokenizer_has_another_digest(bpe_tokenizer, edit):
  copy = lambda: with_template(
    transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer.from_str(bpe_tokenizer.backend_tokenizer.to_str())
    ),
    None,
  )
  before, edited = copy(), copy()
  assert manifest.tokenizer_digest(before) == manifest.tokenizer_digest(edited)
  edited(["padded", "to the same length"], padding=False)
  before.backend_tokenizer.enable_truncation(4)  # a state, not what the tokenizer is
  before.backend_tokenizer.no_truncation()
  assert manifest.tokenizer_digest(before) == manifest.tokenizer_digest(edited)
  edit(edited)
  assert manifest.tokenizer_digest(before) != manifest.tokenizer_digest(edited)


def _lowercase():
  return tokenizers.normalizers.Lowercase()


def _metaspace():
  return tokenizers.decoders.Metaspace()


def test_an_edited_merge_has_another_digest(bpe_tokenizer):
  """Of a pair that stands in no probe."""
  made = json.loads(bpe_tokenizer.backend_tokenizer.to_str())
  made["model"]["merges"] = made["model"]["merges"][:-1]
  edited = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(made)), bos_token="<s>"
  )
  same = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe_tokenizer.backend_tokenizer, bos_token="<s>"
  )
  assert manifest.tokenizer_digest(edited) != manifest.tokenizer_digest(same)


def test_an_edited_template_has_another_digest_and_the_day_has_no_say(bpe_tokenizer):
  chat = formats.find_format("chat")
  of = lambda template: manifest.chat_digest(chat, with_template(bpe_tokenizer, template))
  assert of(LLAMA) == of(LLAMA) == of(LLAMA + "{# a comment changes nothing #}")
  once = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}x"
  digests = {of(LLAMA), of(VARIABLE), of(LLAMA + "."), of(once), of("x")}
  assert len(digests) == 5


MANIFEST = {
  "config": {"seed": 0},
  "model": {"path": "demo"},
  "tokenizer": {"sha256": "a"},
  "chat": {"dialogue": {"sha256": "b"}},
  "helpers": {"embedder": "c"},
}


@pytest.mark.parametrize(
  "part,value,says",
  [
    ("tokenizer", {"sha256": "x"}, "another tokenizer .sha256: 'a' -> 'x'"),
    ("chat", {"dialogue": {"sha256": "x"}}, "another chat template .dialogue.sha256"),
    ("helpers", {"embedder": "x"}, "another embedder, guard or model of verdicts .embedder"),
  ],
)
def test_a_resume_with_another_part_is_refused(tmp_path, part, value, says):
  out = directory.Run.open(str(tmp_path), MANIFEST)
  out.append(line("a"))
  out.close()
  with pytest.raises(directory.RunError, match=f"{says}.*choose another --workdir"):
    directory.Run.open(str(tmp_path), MANIFEST | {part: value})
  directory.Run.open(str(tmp_path), MANIFEST).close()


def test_a_directory_of_an_older_version_goes_on_with_a_warning(tmp_path, caplog):
  """It kept neither a layout, nor a time, nor what came later; its results have no origin."""
  old = {"config": {"seed": 0}, "model": {"path": "demo"}}
  (tmp_path / directory.MANIFEST).write_text(json.dumps(old))
  (tmp_path / directory.RESULTS).write_text(json.dumps(line("a")) + "\n")
  with caplog.at_level(logging.WARNING, "rain_jax"):
    out = directory.Run.open(str(tmp_path), MANIFEST)
  out.append(line("b"))
  out.close()
  assert [r["id"] for r in directory.read_results(str(tmp_path))] == ["a", "b"]
  assert json.loads((tmp_path / directory.MANIFEST).read_text()) == old
  (said,) = [record.getMessage() for record in caplog.records]
  assert "did not keep tokenizer, chat, helpers" in said


def test_keys_that_a_configuration_did_not_have_yet_change_nothing(tmp_path):
  """Until they are given a value."""
  old = {"config": {"seed": 0, "prompts": {"path": "a"}, "model": {"path": "m"}}}
  now = {"seed": 0, "prompts": {"path": "a", "bad_rows": "refuse"}, "calibration": ""}
  now |= {"model": {"path": "m", "revision": "", "adapter": ""}}
  manifest.check(tmp_path, old, {"config": now})
  manifest.check(tmp_path, {"config": now}, old)
  with pytest.raises(directory.RunError, match="calibration: '' -> 'mine.yaml'"):
    manifest.check(tmp_path, old, {"config": now | {"calibration": "mine.yaml"}})
  with pytest.raises(directory.RunError, match="prompts.bad_rows: 'refuse' -> 'skip'"):
    manifest.check(tmp_path, old, {"config": now | {"prompts": {"path": "a", "bad_rows": "skip"}}})
  with pytest.raises(directory.RunError, match="model.adapter: '' -> 'lora'"):
    manifest.check(tmp_path, old, {"config": now | {"model": {"path": "m", "adapter": "lora"}}})


READABLE = {
  "config": json.loads(json.dumps(small_runs.CONFIG)),
  "model": {"path": "demo"},
  "versions": {},
  "formats": {},
}


@pytest.mark.parametrize(
  "name",
  [
    "config.tasks",
    "config.methods",
    "config.judge",
    "config.format",
    "config.search.variant",
    "config.prompts",
    "config.prompts.path",
    "config.prompts.limit",
    "config.seed",
    "model",
    "versions",
    "formats",
  ],
)
@pytest.mark.parametrize("value", [None, 3, "x", [], ["a", 3], {}], ids=repr)
def test_a_manifest_that_lacks_what_readers_need_is_one_line(tmp_path, name, value):
  made = json.loads(json.dumps(READABLE))
  assert manifest.fault(made) == ""
  *above, last = name.split(".")
  part = made
  for key in above:
    part = part[key]
  if type(part[last]) is type(value) and value != ["a", 3] and not (value == {} and part[last]):
    pytest.skip("of the right kind")
  part[last] = value
  (tmp_path / directory.MANIFEST).write_text(json.dumps(made))
  with pytest.raises(
    directory.RunError, match=rf"manifest.json: {name}.*put a whole copy"
  ) as error:
    directory.read_manifest(str(tmp_path))
  assert "\n" not in str(error.value)
  (tmp_path / directory.RESULTS).write_text(json.dumps(line("a")) + "\n")
  with contextlib.suppress(directory.RunError):  # a start may be of another run
    directory.Run.open(str(tmp_path), READABLE).close()


@pytest.mark.parametrize("started", [3, [], "yesterday", "2026-13-01T00:00:00", None], ids=repr)
def test_a_time_that_is_none_is_one_line(started):
  with pytest.raises(directory.RunError, match="started=.* is no time; put a whole copy"):
    manifest.dated({}, {"started": started})
  assert manifest.dated({}, {}) == {}
