"""The scripts as a user starts them: bad flags, one prompt, interruptions, conversion."""

import collections
import json
import os
import pathlib
import re
import signal
import threading
import time

import pytest

from rain_jax.runs import directory
from tests.helpers.scripts import LIMIT, end, start, wait_for
from tests.helpers.small_runs import by_key, flags_of

PROMPTS = [f"the cat number {i} sat on a mat; and then" for i in range(10)]
METHODS = ("vanilla", "rain")
# How often a run of both compiles each program that is worth the name: the verdict's prefix
# (that of the prompts is empty), one slot's beginning, a search's steps, samples, verdicts on whole responses.
PROGRAMS = {"read": 1, "begin_prompts": 1, "advance": 1, "sample": 1, "review": 1}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
  path.write_text("\n".join(PROMPTS) + "\n", "utf-8")
  return path


@pytest.fixture(scope="module")
def undisturbed(checkpoint, prompts, tmp_path_factory):
  """The results of a run that nobody stopped, and what it printed."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  code, out, err = end(
    start("generate.py", *flags_of(checkpoint, workdir, **{"prompts.path": prompts}))
  )
  assert code == 0, err
  return by_key(workdir), out


def test_what_cannot_run_says_so_in_one_line(tmp_path):
  bad = {
    ("--config=configs/demo.py", "--config.nope=1"): "nope",
    ("--config=configs/nope.py",): "configs/nope.py",
    ("--config=configs/demo.py:odd",): "expected quick, full",
    ("--config=configs/dialogue.py", "stray"): "'stray'",
    ("--config=configs/dialogue.py", "--config.prompts.path=/nowhere/x.jsonl"): "/nowhere/x.jsonl",
    ("--config=configs/dialogue.py", "--config.batch_size=many"): "batch_size=many",
  }
  cases, workdir = list(bad.items()), tmp_path / "run"
  for two in zip(cases[::2], cases[1::2]):  # as many at a time as there are cores
    begun = [start("generate.py", *flags, f"--workdir={workdir}") for (flags, _) in two]
    for (flags, says), process in zip(two, begun):
      code, out, err = end(process)
      assert code not in (0, None), flags
      assert len(err.strip().splitlines()) == 1, err
      assert err.startswith("error: ") and says in err and "Traceback" not in err
      assert out == ""
  assert not workdir.exists()


def test_a_run_shows_a_table_and_an_answer(undisturbed):
  results, out = undisturbed
  assert len(results) == len(PROMPTS) * len(METHODS)
  for method in METHODS:
    assert sum(line.split()[:1] == [method] for line in out.splitlines()) >= 1
  assert "rewinds per response" in out and "prompt: the cat number" in out and "results in" in out
  assert "report.html" in out


def test_each_program_is_compiled_once_and_by_the_next_process_not_at_all(checkpoint, tmp_path):
  """Two files, prompts of several lengths, a batch that is not full."""
  files = [tmp_path / "short.txt", tmp_path / "long.txt"]
  files[0].write_text("the cat\n\nthe cat sat on a mat\n", "utf-8")
  files[1].write_text("".join(f"{prompt}\n" for prompt in PROMPTS[:3]), "utf-8")
  changes = {"prompts.path": ",".join(map(str, files))}
  said = []
  for name in ("first", "second"):
    flags = flags_of(checkpoint, tmp_path / name, **changes)
    code, _, err = end(start("generate.py", *flags, JAX_LOG_COMPILES="1"))
    assert code == 0, err
    said.append(err)
  assert by_key(tmp_path / "first") == by_key(tmp_path / "second")
  count = lambda pattern, text: collections.Counter(re.findall(pattern, text))
  compiled = count(r"Compiling jit\((\w+)\)", said[0])
  assert {name: compiled[name] for name in PROGRAMS} == PROGRAMS
  assert count(r"Compiling jit\((\w+)\)", said[1]) == compiled
  found = count(r"cache hit for 'jit_(\w+)'", said[1])
  assert {name: found[name] for name in PROGRAMS} == PROGRAMS


def test_one_prompt_from_the_command_line(checkpoint, tmp_path):
  text = 'the {cat}\tsat "on" é\n'
  methods = ("vanilla",)  # another program of the search would have to be compiled for one slot
  flags = flags_of(checkpoint, tmp_path, methods=methods)
  code, out, err = end(start("generate.py", *flags, "--prompt", text))
  assert code == 0, err
  results = by_key(tmp_path)
  assert tuple(method for _, method in results) == methods
  assert all(r["prompt"] == text and r["finish_reason"] != "rejected" for r in results.values())
  assert "the {cat}" in out and "vanilla: " in out and "\x1b" not in out
  assert (tmp_path / directory.SUMMARY).exists()
  report = tmp_path / "report.html"
  assert "refusal_prefixes" not in report.read_text("utf-8")
  judge = start("judge.py", f"--workdir={tmp_path}", "--config.judge=refusal_prefixes")
  code, out, err = end(judge)
  assert code == 0 and str(report) in out, err
  assert "refusal_prefixes" in report.read_text("utf-8")


@pytest.mark.slow
def test_a_live_view_shows_what_is_taken_back_and_the_run_leaves_its_pages(checkpoint, tmp_path):
  flags = flags_of(checkpoint, tmp_path, methods=("rain",), record=1)
  code, out, err = end(start("generate.py", *flags, "--prompt", PROMPTS[0], "--live"), limit=900)
  assert code == 0, err
  lines = out.splitlines()
  assert any(line.startswith("+ ") for line in lines) and any(
    line.startswith("= ") for line in lines
  )
  assert f"prompt: {PROMPTS[0]}" in lines and "\x1b" not in out
  assert (tmp_path / "report.html").exists() and len(
    list((tmp_path / "recordings").glob("*.html"))
  ) == 1
  (result,) = by_key(tmp_path).values()
  for script, says in (("report.py", "report.html"), ("export.py", "1 responses")):
    more = [f"--sft={tmp_path / 'sft.jsonl'}"] if script == "export.py" else []
    code, out, err = end(start(script, f"--workdir={tmp_path}", *more))
    assert code == 0 and says in out, err
  line = json.loads((tmp_path / "sft.jsonl").read_text("utf-8"))
  assert line["messages"][1]["content"] == result["response"]


def test_a_live_view_needs_rain(tmp_path):
  process = start(
    "generate.py",
    "--config=configs/demo.py",
    "--live",
    "--config.methods=('vanilla',)",
    f"--workdir={tmp_path}",
  )
  code, _, err = end(process)
  assert code == 1 and "add rain to config.methods" in err and len(err.strip().splitlines()) == 1


def test_an_interrupted_run_keeps_its_results_and_goes_on_to_the_same(
  checkpoint, prompts, undisturbed, tmp_path
):
  """A kill that nothing can catch, then Ctrl-C, then to the end."""
  flags = flags_of(checkpoint, tmp_path, **{"prompts.path": prompts})

  process = start("generate.py", *flags)
  wait_for(tmp_path, process, "vanilla", 1)
  process.kill()
  assert end(process)[0] == -signal.SIGKILL
  killed = by_key(tmp_path)
  whole = b"".join(
    (tmp_path / directory.RESULTS).read_bytes().splitlines(keepends=True)[: len(killed)]
  )
  assert 1 <= len(killed) <= len(PROMPTS)
  with open(tmp_path / directory.RESULTS, "ab") as file:
    file.write(b'{"id": "3", "meth')  # as if killed while it wrote

  process = start("generate.py", *flags)
  wait_for(tmp_path, process, "rain", 2)
  process.send_signal(signal.SIGINT)
  code, _, err = end(process)
  assert code == 130, err
  assert err.strip().splitlines()[-1] == "stopped; the same command goes on from here"
  assert "Traceback" not in err
  results = (tmp_path / directory.RESULTS).read_bytes()
  assert results.startswith(whole) and results.endswith(b"\n")
  assert len(PROMPTS) + 2 <= len(by_key(tmp_path)) < 2 * len(PROMPTS)
  assert not (tmp_path / directory.SUMMARY).exists()

  code, _, err = end(start("generate.py", *flags))
  assert code == 0, err
  assert by_key(tmp_path) == undisturbed[0]
  summary = json.loads((tmp_path / directory.SUMMARY).read_text("utf-8"))
  assert all(summary["methods"][m]["responses"] == len(PROMPTS) for m in METHODS)


def test_a_converted_checkpoint_gives_the_same_responses(
  checkpoint, prompts, undisturbed, tmp_path
):
  target = tmp_path / "converted"
  code, _, err = end(
    start(
      "convert_checkpoint.py", f"--source={checkpoint}", f"--target={target}", "--dtype=float32"
    )
  )
  assert code == 0, err
  workdir = tmp_path / "run"
  changes = {"prompts.path": prompts, "methods": ("vanilla",)}
  code, _, err = end(start("generate.py", *flags_of(target, workdir, **changes)))
  assert code == 0, err
  expected = {key: result for key, result in undisturbed[0].items() if key[1] == "vanilla"}
  assert by_key(workdir) == expected


def test_a_conversion_that_cannot_run_says_so_in_one_line(tmp_path):
  process = start(
    "convert_checkpoint.py", "--source=/nowhere/model", f"--target={tmp_path / 'out'}"
  )
  code, _, err = end(process)
  assert code not in (0, None) and len(err.strip().splitlines()) == 1 and "/nowhere/model" in err
  assert not (tmp_path / "out").exists()


def test_sigterm_ends_a_run_between_results_with_a_code_that_says_resume(
  checkpoint, prompts, undisturbed, tmp_path
):
  flags = flags_of(checkpoint, tmp_path, **{"prompts.path": prompts})
  process = start("generate.py", *flags)
  wait_for(tmp_path, process, "rain", 2)
  process.terminate()
  code, _, err = end(process)
  assert code == os.EX_TEMPFAIL == 75, err
  assert err.strip().splitlines()[-1] == "stopped; the same command goes on from here"
  assert (tmp_path / directory.RESULTS).read_bytes().endswith(b"\n")
  assert len(PROMPTS) + 2 <= len(by_key(tmp_path)) < 2 * len(PROMPTS)
  code, _, err = end(start("generate.py", *flags))
  assert code == 0, err
  assert by_key(tmp_path) == undisturbed[0]


@pytest.mark.slow
def test_host_memory_does_not_grow_with_the_prompts(checkpoint, tmp_path):
  """1,000 prompts by both methods: what is resident after 100 of the searches is all there ever is."""
  many = tmp_path / "prompts.txt"
  many.write_text("".join(f"the cat number {i} sat on a mat\n" for i in range(1000)), "utf-8")
  process = start("generate.py", *flags_of(checkpoint, tmp_path / "run", **{"prompts.path": many}))
  status = pathlib.Path(f"/proc/{process.pid}/status")
  resident, ended = {}, []
  reader = threading.Thread(target=lambda: ended.append(end(process, 6 * LIMIT)))
  reader.start()
  while process.poll() is None:
    done = len(directory.read_results(str(tmp_path / "run"))) if (tmp_path / "run").exists() else 0
    if found := re.search(r"VmRSS:\s+(\d+) kB", status.read_text("utf-8")):
      resident[done] = int(found[1])
    time.sleep(1)
  reader.join()
  code, _, err = ended[0]
  assert code == 0, err
  assert len(directory.read_results(str(tmp_path / "run"))) == 2000
  early = max(size for done, size in resident.items() if done <= 1100)
  late = max(resident.values())
  print(f"resident: {early} kB after 100 searches, {late} kB at the end")
  assert late < 1.05 * early
