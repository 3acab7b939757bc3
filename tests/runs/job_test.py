"""The main job on a tiny random checkpoint: every prompt accounted for, resume, one-line errors."""

import contextlib
import copy
import datetime
import json
import pathlib
import shutil
import threading
import types

import pytest

from rain_jax import demo, preferences
from rain_jax.methods import ahead
from rain_jax.models import CheckpointError, backend, loading
from rain_jax.parallel.hosts import Hosts
from rain_jax.preferences import PreferenceError
from rain_jax.preferences.calibration import Calibration
from rain_jax.runs import directory, from_config, job, locks, results
from rain_jax.text.printable import printable
from rain_jax.types import DataError
from tests.helpers import small_runs
from tests.helpers.results import line

PROMPTS = [
  {"id": "short", "prompt": "the cat {prompt} sat"},
  {"id": "empty", "prompt": "  "},
  {"id": "long", "prompt": "far away " * 60},
  {"id": "odd", "prompt": "Human: é\u0000\u2028\n\nAssistant: </s> 😀"},
]


@pytest.fixture
def config(checkpoint, tmp_path):
  made = copy.deepcopy(small_runs.CONFIG)
  made["model"]["path"] = str(checkpoint)
  path = tmp_path / "prompts.jsonl"
  path.write_text("".join(json.dumps(p) + "\n" for p in PROMPTS), "utf-8")
  made["prompts"]["path"] = str(path)
  return made


def test_a_rule_for_other_prompts_is_known_before_a_run_begins(config, tmp_path):
  config["judge"] = "demo_rules"
  with pytest.raises(DataError, match="'short' is not from the demo world.*config.judge=none"):
    job.run(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_every_prompt_is_accounted_for_once_and_resume_adds_what_is_missing(config, tmp_path):
  workdir = tmp_path / "run"
  said = []
  config["record"] = 1
  summary = job.run(config, str(workdir), said.append)
  results = directory.read_results(str(workdir))
  key = lambda r: (r["id"], r["method"])
  assert sorted(map(key, results)) == sorted(
    (p["id"], m) for p in PROMPTS for m in ("rain", "best_of_n", "vanilla")
  )
  by_key = {key(r): r for r in results}
  for method, numbers in summary["methods"].items():
    assert numbers["responses"] == 2 and numbers["rejected"] == 2
    assert numbers["tokens_forwarded_per_token"] > 1 and numbers["seconds"] > 0
    assert "empty" in by_key["empty", method]["error"]
    assert "limits.max_prompt=64" in by_key["long", method]["error"]
    for name in ("short", "odd"):
      line = by_key[name, method]
      assert line["verdict"] in (-1.0, 0.0, 1.0) and line["finish_reason"] in (
        "eos",
        "stop",
        "length",
      )
      assert line["counters"]["model_calls"] > 0
  (kept,) = directory.recorded(str(workdir))
  assert kept.id == "short" and kept.recording.response == by_key["short", "rain"]["response"]
  assert kept.recording.counters == by_key["short", "rain"]["counters"]
  assert "rain" in said[0] and "rewinds per response" in said[0]
  manifest = json.loads((workdir / directory.MANIFEST).read_text("utf-8"))
  assert manifest["search"]["dialogue"]["max_iterations"] == 4
  assert (
    manifest["templates"]["dialogue"]["name"] == "harmless"
    and len(manifest["model"]["fingerprint"]) == 64
  )

  # As after a kill: the last two lines are gone, the next is half written.
  lines = (workdir / directory.RESULTS).read_bytes().splitlines(keepends=True)
  (workdir / directory.RESULTS).write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
  job.run(config, str(workdir), said.append)
  again = {key(r): r for r in directory.read_results(str(workdir))}
  assert again.keys() == by_key.keys()
  assert all(again[k]["response"] == by_key[k]["response"] for k in by_key)
  before = (workdir / directory.RESULTS).read_bytes()
  job.run(config, str(workdir), said.append)
  assert (workdir / directory.RESULTS).read_bytes() == before

  with pytest.raises(directory.RunError, match="seed: 0 -> 1"):
    job.run(config | {"seed": 1}, str(workdir), said.append)
  assert (workdir / directory.RESULTS).read_bytes() == before


def test_adaptive_searches_go_on_where_they_were_stopped(tmp_path):
  """Drafts that were committed and not yet final are lost with their process, and made again."""
  config = _changed(
    copy.deepcopy(small_runs.CONFIG),
    model__path="demo",
    tasks=("demo_requests",),
    methods=("adaptive",),
    prompts__path=str(demo.DATA_DIR.parent / "prompts" / "harmful.jsonl"),
    prompts__limit=4,
    limits={"max_prompt": 64, "max_response": 24},
    verdict_noise=0.3,
  )
  config["search"] |= {"root_tries": 1, "search_after": 1}
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  job.run(config, str(whole), lambda line: None)
  expected = small_runs.by_key(whole)
  done = lambda name: sum(result["counters"][name] for result in expected.values())
  assert len(expected) == 4 and done("taken_back") and done("searched_moves")

  results = stopped / directory.RESULTS
  two = lambda: results.exists() and len(directory.read_results(str(stopped))) >= 2
  with pytest.raises(directory.Stopped):
    job.run(config, str(stopped), lambda line: None, stopping=two)
  kept = results.read_bytes()
  assert 2 <= kept.count(b"\n") < 4
  results.write_bytes(kept[:-20])  # as after a kill in the middle of a line
  job.run(config, str(stopped), lambda line: None)
  assert small_runs.by_key(stopped) == expected


def _changed(config, **changes):
  for name, value in changes.items():
    *parents, last = name.split("__")
    place = config
    for parent in parents:
      place = place[parent]
    place[last] = value
  return config


@pytest.mark.parametrize(
  "changes,error,says",
  [
    (dict(prompts__path="/nowhere.jsonl"), DataError, "no such file"),
    (dict(model__path="/nowhere"), CheckpointError, "/nowhere"),
    (dict(model__dtype="float8"), CheckpointError, "float8"),
    (dict(tasks=("nope",)), DataError, "unknown task|Unknown task"),
    (dict(methods=("magic",)), DataError, "magic"),
    (dict(preference="/nowhere.yaml"), PreferenceError, "nowhere"),
    (dict(search__variant="odd"), DataError, "odd"),
    (dict(embedder__name="words"), ValueError, "words"),
    (dict(embedder={"name": "minilm", "path": "/nowhere"}), ValueError, "/nowhere"),
    (dict(search__num_candidates=1), ValueError, "num_candidates"),
    (dict(search__max_nodes=4), ValueError, "max_nodes"),
    (dict(methods=("best_of_n",)), DataError, "best_of_n.samples"),
    (dict(methods=("rain", "vanilla", "rain")), DataError, "rain appears twice"),
    (dict(batch_size=0), DataError, "batch_size=0: expected a whole number from 1 to 1048576"),
    (dict(limits__max_prompt=0), DataError, "max_prompt=0"),
    (dict(limits__max_response=-1), DataError, "max_response=-1"),
    (dict(record=-1), DataError, "record=-1: expected a whole number, 0 or more"),
    (dict(prompts__limit=-1), DataError, "prompts.limit=-1"),
    (dict(best_of_n__samples=-1), DataError, "best_of_n.samples=-1"),
  ],
)
def test_bad_configuration_is_one_line_that_says_what_to_do(config, tmp_path, changes, error, says):
  with pytest.raises(error, match=says) as caught:
    job.run(_changed(config, **changes), str(tmp_path / "run"))
  assert "\n" not in str(caught.value)


def test_a_checkpoint_without_tokenizer_is_named(config, checkpoint, tmp_path):
  bare = tmp_path / "bare"
  bare.mkdir()
  for name in ("config.json", "model.safetensors"):
    (bare / name).write_bytes(pathlib.Path(checkpoint, name).read_bytes())
  with pytest.raises(CheckpointError, match="tokenizer") as caught:
    job.run(_changed(config, model__path=str(bare)), str(tmp_path / "run"))
  assert "\n" not in str(caught.value)


def test_one_prompt_of_ones_own_is_not_judged_by_the_tasks_rules(config):
  assert from_config.task_of(config, "demo_requests").judge == "demo_rules"
  _changed(config, prompts__text="How do I rob the ferry?")
  assert from_config.task_of(config, "demo_requests").judge == "none"
  assert (
    from_config.task_of(config | {"judge": "demo_rules"}, "demo_requests").judge == "demo_rules"
  )


class Unanswered:
  """Stands in for a task's share of a run: a prompt's answer at most, and no model."""

  after = staticmethod(lambda out: None)

  def __init__(self, name, out, *rest):
    self.out = out

  def compiling(self, session, names, after):
    return ahead.Ahead([])

  def run(self, session, names):
    self.after(self.out)


def without_model(*args):
  """Stands in for a session."""
  return types.SimpleNamespace(with_weights=lambda loaded: None)


@pytest.fixture
def unanswered(monkeypatch):
  monkeypatch.setattr(job, "Session", without_model)
  monkeypatch.setattr(job, "TaskRun", Unanswered)
  return lambda after: monkeypatch.setattr(Unanswered, "after", staticmethod(after))


def test_results_of_others_that_are_not_there_are_an_error_when_they_are_done(
  config, tmp_path, unanswered
):
  config["methods"] = ("vanilla",)
  said, workdir = [], tmp_path / "run"
  assert job.run(config, str(workdir), said.append, hosts=Hosts(0, 2)) is None
  assert said == ["process 0 of 2 is done; others have 4 results to make"]
  with pytest.raises(
    directory.RunError, match="4 results are not there; it is not one directory for all"
  ):
    job.run(config, str(workdir), said.append, hosts=Hosts(0, 2, connected=True))

  def answer_and_lose(out):
    out.append(line("short"))
    workdir.rename(tmp_path / "elsewhere")

  unanswered(answer_and_lose)
  with pytest.raises(directory.RunError, match="or was taken away"):
    job.run(config, str(workdir), said.append, hosts=Hosts(0, 2))


def test_a_second_start_while_the_first_judges_is_an_error(
  config, tmp_path, unanswered, monkeypatch
):
  """The first is alone in the directory until its summary is written."""
  config["methods"] = ("vanilla",)
  workdir = str(tmp_path / "run")
  unanswered(lambda out: [out.append(line(p["id"])) for p in PROMPTS if not out.results[3:]])
  said = []

  def judged(*args):
    with pytest.raises(directory.RunError, match="another process writes it; stop that one"):
      job.run(config, workdir, said.append)
    with pytest.raises(directory.RunError, match="another process judges this run; start again"):
      job.add_ratings(workdir, config, [], said.append)
    return {"methods": {}}

  with monkeypatch.context() as patched:
    patched.setattr(job, "_sum_up", judged)
    assert job.run(config, workdir, said.append) == {"methods": {}} and said == []
  with locks.judging(workdir) as alone:  # as judge.py and sheet.py do
    assert alone
    with pytest.raises(directory.RunError, match="all is answered, and another process judges it"):
      job.run(config, workdir, said.append)
    with pytest.raises(directory.RunError, match="another process judges this run"):
      job.judge_again(workdir, config, config, said.append)
    assert said == [] and not (tmp_path / "run" / directory.SUMMARY).exists()


def test_of_several_processes_one_judges_and_the_others_say_so(config, tmp_path, unanswered):
  config["methods"] = ("vanilla",)
  workdir, said = str(tmp_path), []
  unanswered(lambda out: [out.append(line(p["id"])) for p in PROMPTS if not out.results[3:]])
  with locks.judging(workdir):
    assert job.run(config, workdir, said.append, hosts=Hosts(0, 2)) is None
  assert said == ["process 0 of 2 is done; another one judges the responses"]
  # A start that finds all answered waits for the judge, and judges if that one did not.
  hosts = Hosts(1, 2)
  asked = []
  with locks.judging(workdir), pytest.raises(directory.Stopped):
    job.run(config, workdir, hosts=hosts, stopping=lambda: len(asked) or asked.append(1))
  judge = contextlib.ExitStack()
  judge.enter_context(locks.judging(workdir))
  killed = threading.Timer(0.5, judge.close)
  killed.start()
  assert job.run(config, workdir, said.append, hosts=hosts)["methods"]
  assert not killed.is_alive() and (tmp_path / directory.SUMMARY).exists()


def test_who_judges_a_run_that_goes_on_does_not_say_that_it_has_ended(
  config, tmp_path, unanswered, caplog
):
  config["methods"] = ("vanilla",)
  unanswered(lambda out: out.append(line(PROMPTS[0]["id"])))
  workdir = str(tmp_path)
  assert job.run(config, workdir, hosts=Hosts(0, 2)) is None
  job.add_ratings(workdir, config, [], lambda said: None)
  assert "has not ended yet" in caplog.text and not (tmp_path / directory.SUMMARY).exists()


def test_a_templates_day_is_that_of_the_first_start(config, tmp_path, checkpoint, unanswered):
  """Weeks later, too: the manifest says when that was, and a changed template is refused."""
  folder = tmp_path / "model"
  shutil.copytree(checkpoint, folder)
  config["model"]["path"], config["format"]["name"] = str(folder), "chat"
  config["methods"] = ("vanilla",)
  template = folder / "chat_template.jinja"
  template.write_text(
    "{{ strftime_now('%d %b %Y') }}:{% for m in messages %} {{ m.content }}{% endfor %}"
  )
  asked = []

  def answer(out):
    asked.append(out.manifest["started"])
    if not out.results:
      out.append(line("short"))

  unanswered(answer)
  again = lambda: job.run(config, str(tmp_path / "run"), hosts=Hosts(0, 2))
  again()
  manifest = tmp_path / "run" / directory.MANIFEST
  kept = json.loads(manifest.read_text("utf-8"))
  assert kept["started"].startswith(str(datetime.date.today().year))
  # As if it had been last year: what else stands there is the same.
  origin = manifest.with_name("results-0.origin")
  before = results.digest_of(kept)
  kept["started"] = "2025-01-02T03:04:05"
  manifest.write_text(json.dumps(kept))
  origin.write_text(origin.read_text().replace(before, results.digest_of(kept)))
  formats = []
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(job, "Session", lambda *args: formats.append(args[1].format) or without_model())
    again()
  tokenizer = loading.load_tokenizer(folder)
  assert formats[0].rendered(tokenizer, ("hi",)) == "02 Jan 2025: hi"
  template.write_text(
    "{{ strftime_now('%d %b %Y') }};{% for m in messages %} {{ m.content }}{% endfor %}"
  )
  with pytest.raises(directory.RunError, match="another chat template .dialogue.sha256"):
    again()


def test_an_edited_tokenizer_is_refused(config, tmp_path, checkpoint, unanswered):
  folder = tmp_path / "model"
  shutil.copytree(checkpoint, folder)
  config["model"]["path"], config["methods"] = str(folder), ("vanilla",)
  unanswered(lambda out: out.results or out.append(line("short")))
  again = lambda: job.run(config, str(tmp_path / "run"), hosts=Hosts(0, 2))
  again()
  again()
  path = folder / "tokenizer.json"
  made = json.loads(path.read_text("utf-8"))
  made["model"]["merges"].reverse()
  path.write_text(json.dumps(made), "utf-8")
  with pytest.raises(directory.RunError, match="another tokenizer .sha256"):
    again()


def test_files_that_were_edited_since_are_refused(config, tmp_path, unanswered):
  config["methods"] = ("vanilla",)
  template = tmp_path / "mine.yaml"
  bundled = pathlib.Path(preferences.__file__).parent / "harmless.yaml"
  text = bundled.read_text("utf-8")
  template.write_text(text, "utf-8")
  config["preference"] = str(template)
  again = lambda: job.run(config, str(tmp_path / "run"), hosts=Hosts(0, 2))
  unanswered(lambda out: out.append(line("short")))
  again()
  unanswered(lambda out: None)
  again()
  template.write_text(text.replace("description:", "description: My", 1), "utf-8")
  with pytest.raises(directory.RunError, match="other preference templates .dialogue.description"):
    again()
  template.write_text(text, "utf-8")
  with open(config["prompts"]["path"], "a", encoding="utf-8") as file:
    file.write(json.dumps({"id": "more", "prompt": "and"}) + "\n")
  with pytest.raises(directory.RunError, match="other prompts .dialogue.count: 4 -> 5"):
    again()


def test_model_output_is_shown_without_control_characters():
  assert printable("a\x1b[31mred\x07\nnext\u202e") == "a\\x1b[31mred\\x07\nnext\\u202e"


def test_a_calibration_decides_verdicts_is_in_the_manifest_and_binds_the_run(config, tmp_path):
  loaded = loading.load(config["model"]["path"])
  preference = preferences.load_preference("harmless:letters")
  digest = preferences.compile_preference(preference, loaded.tokenizer).digest
  path = tmp_path / "offsets.yaml"
  config |= {"methods": ("vanilla",), "calibration": str(path)}

  def run(offset, workdir, fingerprint=loaded.fingerprint):
    fitted = Calibration(
      "tiny", fingerprint, "harmless:letters", digest, "by hand", (offset, offset), (1.0, 1.0)
    )
    path.write_text(fitted.as_yaml(), "utf-8")
    job.run(config, str(tmp_path / workdir))
    return fitted, [
      r["verdict"] for r in directory.read_results(str(tmp_path / workdir)) if "error" not in r
    ]

  fitted, verdicts = run(-100.0, "easy")
  assert verdicts == [1.0, 1.0]
  manifest = json.loads((tmp_path / "easy" / directory.MANIFEST).read_text("utf-8"))
  kept = manifest["calibration"]["dialogue"]
  assert (kept["offsets"], kept["source"]) == ([-100.0, -100.0], "by hand")
  assert run(100.0, "strict")[1] == [-1.0, -1.0]
  path = tmp_path / "moved.yaml"
  config["calibration"] = str(path)
  assert run(100.0, "strict")[1] == [-1.0, -1.0]  # the same run
  with pytest.raises(directory.RunError, match="holds a run of another calibration"):
    run(-100.0, "strict")
  with pytest.raises(PreferenceError, match="fitted for another model"):
    run(0.0, "other", "0" * 64)


def test_a_plan_for_tpus_is_made_from_shapes_alone(config, tmp_path):
  config["prompts"] |= {"path": "", "text": "the cat sat"}
  with backend.target("tpu"):
    (at_hand,) = job.plans(config).values()
  folder = tmp_path / "without weights"
  shutil.copytree(config["model"]["path"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
  config["model"]["path"] = str(folder)
  (one,) = job.plans_for_chips(config, "tpu", 1, 1 << 30).values()
  assert one == at_hand
  config["batch_size"], config["mesh"]["tensor"] = 4, 2
  config["prompts"]["text"] = ""
  path = tmp_path / "four.txt"
  path.write_text("the cat sat\n" * 4)
  config["prompts"]["path"] = str(path)
  (four,) = job.plans_for_chips(config, "tpu", 4, 1 << 30).values()
  # Two of four trees on each chip, and half of their keys and values; most weights are split.
  caches = ("contexts of both caches", "visited nodes of both caches")
  for name in caches:
    assert four.parts[name] == one.parts[name], name
  assert four.parts["trees"] == 2 * one.parts["trees"]
  assert one.parts["weights"] / 2 < four.parts["weights"] < 0.6 * one.parts["weights"]
  with pytest.raises(ValueError, match="GiB of weights on each device.*raise mesh.tensor"):
    job.plans_for_chips(config, "tpu", 4, 1000)
  with pytest.raises(ValueError, match="product is the 4 devices"):
    job.plans_for_chips(config | {"mesh": {"data": -1, "tensor": 3}}, "tpu", 4, 1 << 30)
