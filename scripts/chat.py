"""A conversation with a model, aligned while it talks.

  python scripts/chat.py
  python scripts/chat.py --config=configs/dialogue.py --config.model.path=/models/vicuna-7b \
      --config.format.name=vicuna --mode=both

Format, preference and search are those of the configuration's first task.
"""

import sys

import cli
from absl import flags

from rain_jax.policy import embedders
from rain_jax.runs import config_check, from_config
from rain_jax.views import chat

_CONFIG = cli.define_config("Configuration, see configs/.", "demo")
_MODE = flags.DEFINE_enum("mode", "rain", list(chat.MODES), "Who answers at first.")


def main() -> None:
  """Talks until the end of input, /quit or Ctrl-C."""
  config = _CONFIG.value.to_dict()
  config_check.check(config)
  loaded = from_config.load_on(config)
  embedder = embedders.find_embedder(**config["embedder"], tokenizer=loaded.tokenizer)
  session_config = from_config.make_session_config(
    config, from_config.task_of(config, config["tasks"][0]), embedder, loaded.judging.tokenizer
  )
  conversation = chat.Conversation(loaded, session_config, config["seed"])
  try:
    chat.talk(conversation, _MODE.value, chat.heard, sys.stdout)
  except KeyboardInterrupt:
    print()


if __name__ == "__main__":
  cli.run(main)
