"""Lines of results, as a run writes them."""

import pathlib

from rain_jax.runs import directory, files, results


def line(name, task="dialogue", method="vanilla", **more):
  """A response to the prompt of that id."""
  return {
    "id": str(name),
    "task": task,
    "method": method,
    "prompt": f"ask {name}",
    "response": f"said of {name}",
    "finish_reason": "eos",
    "verdict": 1.0,
    "counters": {"response_tokens": 3, "model_calls": 4, "tokens_forwarded": 5},
    "seconds": 0.5,
  } | more


def ids(workdir):
  """Ids of all lines of a directory, in order, those that are there twice, too."""
  path = pathlib.Path(workdir)
  return [one["id"] for file in results.files(path) for one in files.read_lines(file)]


def once(workdir):
  """All lines of a directory; fails if a response is there twice."""
  path = pathlib.Path(workdir)
  lines = [one for file in results.files(path) for one in files.read_lines(file)]
  found = directory.read_results(str(workdir))
  assert len(lines) == len(found)
  return found
