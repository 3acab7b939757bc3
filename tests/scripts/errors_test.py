"""What goes wrong for a new user: one line each that says what to do, nothing half made."""

import copy
import json
import logging
import runpy
import signal
import sys
import time
import types

import huggingface_hub
import pytest
import sentencepiece
import yaml
from absl import app, flags
from huggingface_hub import errors

from rain_jax.models import CheckpointError, arrays, loading
from rain_jax.preferences import PreferenceError
from rain_jax.runs import job
from rain_jax.tasks.files import read_rows
from rain_jax.types import DataError
from tests.helpers import small_runs
from tests.helpers.repository import ROOT
from tests.helpers.scripts import end, start


@pytest.mark.parametrize(
  "kind,says",
  [
    (errors.GatedRepoError, "gated; accept its terms .* HF_TOKEN"),
    (errors.RepositoryNotFoundError, "no such model on the hub, or a private one: check the path"),
    (errors.HfHubHTTPError, "the hub does not give it .401 Client Error. Long story..: .* check"),
  ],
)
def test_a_hub_model_that_is_not_for_everybody(monkeypatch, kind, says):
  def refuse(*args, **kwargs):
    response = types.SimpleNamespace(headers={}, request=None)
    raise kind("401 Client Error.\n\nLong story.", response=response)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
  with pytest.raises(CheckpointError, match=f"^some/model: .*{says}") as error:
    loading.load("some/model")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "cause,says",
  [
    (
      ConnectionError("[Errno -2] Name or service not known"),
      "the hub cannot be reached: give the path of a folder, or check the network",
    ),
    (errors.OfflineModeIsEnabled("Cannot reach it."), "HF_HUB_OFFLINE .* or unset that"),
    (
      errors.HfHubHTTPError(
        "503 Service Unavailable", response=types.SimpleNamespace(headers={}, request=None)
      ),
      "the hub does not give it .503 Service Unavailable.: ",
    ),
  ],
)
def test_a_mistyped_path_that_looks_like_a_name_on_the_hub(monkeypatch, caplog, cause, says):
  def fail(*args, **kwargs):
    raise errors.LocalEntryNotFoundError(
      f"Got: {cause}\nAn error happened while trying to locate the files on the Hub."
    ) from cause

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
  caplog.set_level(logging.INFO, "rain_jax")
  name = "models/llama-7b"
  with pytest.raises(CheckpointError, match=f"^{name}: no such folder, and {says}") as error:
    loading.load(name)
  assert "\n" not in str(error.value) and "An error happened" not in str(error.value)
  assert caplog.messages == [f"{name}: no such folder; asking the hub for it"]


@pytest.mark.parametrize(
  "kind,says",
  [
    (errors.GatedRepoError, "gated; accept the terms of data set some/data .* HF_TOKEN"),
    (errors.RepositoryNotFoundError, "no data set some/data on the hub, or a private one"),
    (errors.RemoteEntryNotFoundError, "has no file part/x.jsonl"),
  ],
)
def test_a_hub_data_set_that_is_not_for_everybody(monkeypatch, kind, says):
  def refuse(*args, **kwargs):
    response = types.SimpleNamespace(headers={}, request=None)
    raise kind("401 Client Error.\n\nLong story.", response=response)

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
  with pytest.raises(DataError, match=f"^hub:some/data/part/x.jsonl: .*{says}") as error:
    read_rows("hub:some/data/part/x.jsonl")
  assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_not_read(checkpoint, monkeypatch):
  monkeypatch.setattr(arrays, "bytes_available", lambda: 1000)
  monkeypatch.setattr(loading, "load_model", lambda *args, **kwargs: pytest.fail("was read"))
  with pytest.raises(ValueError, match="GiB of weights .* lower model.dtype"):
    loading.load(str(checkpoint))


@pytest.fixture
def config(checkpoint, tmp_path):
  made = copy.deepcopy(small_runs.CONFIG)
  made["model"]["path"] = str(checkpoint)
  made["prompts"]["text"] = "the cat sat"
  return made


def test_labels_of_several_tokens_are_known_before_a_run_begins(config, tmp_path):
  mine = {
    "name": "mine",
    "description": "One line.",
    "prefix": "",
    "cut": "none",
    "conversation": "Human: {prompt}\n\nAssistant:",
    "readings": [{"suffix": "\n\nIs it fine?", "good": [" perfectly"], "bad": [" No"]}],
  }
  path = tmp_path / "mine.yaml"
  path.write_text(yaml.safe_dump(mine), "utf-8")
  config["preference"] = str(path)
  with pytest.raises(PreferenceError, match="' perfectly' .* expected one known token") as error:
    job.run(config, str(tmp_path / "run"))
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_no_chat_template_is_known_before_a_run_begins(config, tmp_path):
  config["format"]["name"] = "chat"
  with pytest.raises(DataError, match="has no chat template; name the family's format"):
    job.run(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_folder_without_a_tokenizer(checkpoint, tmp_path):
  for name in ("config.json", "model.safetensors"):
    (tmp_path / name).symlink_to(checkpoint / name)
  with pytest.raises(CheckpointError, match="no usable tokenizer .* tokenizer.json") as error:
    loading.load(str(tmp_path))
  assert "\n" not in str(error.value)


def test_a_sentencepiece_model_needs_the_file_that_says_how_texts_begin(tmp_path):
  text = "the cat sat on a mat."
  with open(tmp_path / "tokenizer.model", "wb") as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([text] * 20),
      model_writer=file,
      vocab_size=280,
      model_type="bpe",
      byte_fallback=True,
      hard_vocab_limit=False,
      minloglevel=2,
    )
  (tmp_path / "config.json").write_text('{"model_type": "llama"}', "utf-8")
  with pytest.raises(CheckpointError, match="put the model's tokenizer_config.json") as error:
    loading.load_tokenizer(tmp_path)
  assert "\n" not in str(error.value)
  said = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
  }
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(said), "utf-8")
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
  ids = loading.load_tokenizer(tmp_path)(text)["input_ids"]
  assert ids == [pieces.bos_id(), *pieces.encode(text)]


def test_no_gpu_and_an_early_interrupt(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  without = start("generate.py", "--config=configs/demo.py", "--plan")
  code, out, err = end(without)
  assert code == 1 and out == "" and len(err.strip().splitlines()) == 1, err
  assert err.startswith("error: no device for JAX_PLATFORMS=cuda: unset it")
  early = start("generate.py", "--config=configs/demo.py")
  time.sleep(0.5)
  early.send_signal(signal.SIGINT)
  code, out, err = end(early)
  assert (code, out, err) == (130, "", "stopped before it began\n")


@pytest.mark.parametrize("resumes,says", [(True, "goes on from here"), (False, "begins anew")])
def test_who_stops_a_script_learns_what_the_same_command_does(monkeypatch, capsys, resumes, says):
  monkeypatch.syspath_prepend(str(ROOT / "scripts"))
  import cli  # pylint: disable=import-outside-toplevel

  def stopped():
    raise KeyboardInterrupt

  monkeypatch.setattr(sys, "argv", ["a script"])
  with pytest.raises(SystemExit) as ended:
    cli.run(stopped, resumes)
  assert ended.value.code == 130
  assert capsys.readouterr().err == f"stopped; the same command {says}\n"


@pytest.fixture
def say(monkeypatch, capsys):
  """What a script prints whose flags cannot be, beside its exit code; run in this process."""
  monkeypatch.chdir(ROOT)
  scripts, configs = str(ROOT / "scripts"), str(ROOT / "configs")
  monkeypatch.setattr(sys, "path", [scripts, *sys.path, configs])
  app.define_help_flags()
  before = set(flags.FLAGS)

  def run(script, *words):
    monkeypatch.setattr(sys, "argv", [f"scripts/{script}", *words])
    try:
      with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"scripts/{script}", run_name="__main__")
    finally:
      for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
      flags.FLAGS.unparse_flags()
    said = capsys.readouterr()
    return ended.value.code, said.out + said.err

  return run


DEMO, BENCHMARK = "--config=configs/demo.py", "--config=configs/benchmark.py:demo"
LISTED = "docs/options.md lists all"


@pytest.mark.parametrize(
  "script,words,line",
  [
    ("generate.py", [], f"give --config, as in {DEMO}; --help shows more"),
    ("generate.py", ["--config.seed=1"], f"give --config, as in {DEMO}; --help shows more"),
    ("benchmark.py", [], f"give --config, as in {BENCHMARK}; --help shows more"),
    ("report.py", [], "give --workdir, as in --workdir=runs/demo; --help shows more"),
    (
      "attack.py",
      [],
      "give --config and --workdir, as in --config=configs/attack.py"
      " --workdir=runs/gcg; --help shows more",
    ),
    (
      "generate.py",
      ["--config=configs/nodemo.py", "--config.seed=1"],
      f"configs/nodemo.py: no such file; give the path of a config, as in {DEMO}",
    ),
    (
      "generate.py",
      ["--config", "configs"],
      f"configs: a folder; give the path of a config, as in {DEMO}",
    ),
    (
      "generate.py",
      [DEMO, "--workdir=README.md"],
      "--workdir=README.md is a file; give a folder, as in --workdir=runs/demo",
    ),
    (
      "generate.py",
      [DEMO, "--config.min_visit=3"],
      f"--config.min_visit: no such key; did you mean search.min_visits? {LISTED}",
    ),
    (
      "generate.py",
      [DEMO + ":full", "--config.serach.leaves=4"],
      f"--config.serach.leaves: no such key; did you mean search.leaves? {LISTED}",
    ),
    (
      "generate.py",
      [DEMO, "--config.seed=1", "--config.seed.x=1"],
      f"--config.seed.x: no such key; did you mean seed? {LISTED}",
    ),
    ("generate.py", [DEMO, "--config.zzz=1"], f"--config.zzz: no such key; {LISTED}"),
    (
      "chat.py",
      ["--noconfig.soft_verdict"],
      f"--config.soft_verdict: no such key; did you mean soft_verdicts? {LISTED}",
    ),
    (
      "benchmark.py",
      [BENCHMARK, "--config.workload.promt=1"],
      f"--config.workload.promt: no such key; did you mean workload.prompt? {LISTED}",
    ),
  ],
)
def test_flags_that_cannot_be_say_what_to_give(say, script, words, line):
  code, said = say(script, *words)
  assert code == 2 and said == f"error: {line}\n"


@pytest.mark.parametrize(
  "words, line",
  [
    (["--prompt="], "--prompt= is empty: give a prompt, or leave it away to run the task's own."),
    (
      ["--prompt= \t"],
      "--prompt= is empty: give a prompt, or leave it away to run the task's own.",
    ),
    (
      ["--config.search.temperature=nan"],
      "search.temperature=nan: expected a number from 0.0001 to 10000.0.",
    ),
    (["--config.tasks=()"], "tasks=(): expected at least one name; docs/options.md lists them."),
    (
      ["--config.prompts.path=a\x1b[31mb"],
      r"a\x1b[31mb: no such file; give the path of a file that is .jsonl, .ndjson, .json, .csv, .tsv"
      " or .txt, or one of them as .gz, .bz2 or .xz.",
    ),
  ],
)
def test_values_that_cannot_be_are_one_line_that_a_terminal_can_show(say, words, line):
  code, said = say("generate.py", "--config=configs/dialogue.py", "--plan", *words)
  assert code == 1 and said == f"error: {line}\n"


def test_messages_quote_files_without_their_control_characters(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "scripts"))
  import cli  # pylint: disable=import-outside-toplevel

  record = logging.LogRecord("rain_jax", logging.WARNING, "", 0, "%s: \x1b[31m", ("a\x9bb",), None)
  assert cli._made_printable(record) and record.getMessage() == r"a\x9bb: \x1b[31m"


@pytest.mark.parametrize(
  "text,says",
  [
    ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'; fix the file"),
    ("def get_config():\n  return 1 / 0", "ZeroDivisionError: division by zero; fix the file"),
    ("def get_config(:", "SyntaxError: invalid syntax (mine.py, line 1); fix the file"),
    ("x = 1", "defines no get_config(); give the path of a config"),
  ],
)
def test_a_config_file_that_raises_anything_is_named(say, tmp_path, text, says):
  path = tmp_path / "mine.py"
  path.write_text(text, "utf-8")
  sys.modules.pop("config_config", None)  # of another config file in this process
  code, said = say("generate.py", f"--config={path}")
  assert code == 2 and said == f"error: {path}: {says}\n"


@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_a_user_without_a_home_runs_without_kept_programs(monkeypatch, capsys, home):
  """As containers have them: a number that the system has no name for, or a folder that is not."""
  monkeypatch.syspath_prepend(str(ROOT / "scripts"))
  import cli  # pylint: disable=import-outside-toplevel

  if home is None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(cli.pathlib.Path, "home", no_home)
  else:
    monkeypatch.setenv("HOME", home)
  changed = []
  config = types.SimpleNamespace(
    jax_compilation_cache_dir=None, update=lambda *change: changed.append(change)
  )
  monkeypatch.setattr(cli, "jax", types.SimpleNamespace(config=config))
  cli._keep_programs()
  assert "jax_compilation_cache_dir" not in dict(changed)
  (said,) = capsys.readouterr().err.splitlines()
  assert said.startswith("no home directory to keep compiled programs in")


def no_home():
  raise RuntimeError("Could not determine home directory.")


def test_help_says_where_the_keys_of_a_config_are_listed(say):
  _, said = say("generate.py", "--help")
  assert "docs/options.md" in said and "--workdir" in said
