"""Reading YAML that somebody else wrote: plain values, and nothing that could run away."""

import os
import pathlib
from typing import Any

import yaml

from rain_jax.preferences.template import PreferenceError

_LARGEST = 1 << 17  # characters; templates have thousands, and YAML is slow to read


class _Loader(yaml.SafeLoader):
  """Refuses what YAML lets pass: an alias may stand for any amount of text, and a key twice."""

  def compose_node(self, parent, index):
    if self.check_event(yaml.AliasEvent):
      event = self.peek_event()
      raise yaml.composer.ComposerError(
        None, None, f"alias *{event.anchor}: write the text out", event.start_mark
      )
    return super().compose_node(parent, index)

  def construct_mapping(self, node, deep=False):
    made = super().construct_mapping(node, deep)
    if len(made) < len(node.value):
      raise yaml.constructor.ConstructorError(None, None, "a key appears twice", node.start_mark)
    return made


def read_yaml(path: str | os.PathLike, wanted: str = "a YAML file") -> Any:
  """The value in a YAML file; `wanted` is what messages say should be there.

  Raises:
    PreferenceError: it cannot be read, in one line.
  """
  try:
    with pathlib.Path(path).open(encoding="utf-8") as file:
      text = file.read(_LARGEST + 1)
  except UnicodeDecodeError:
    raise PreferenceError(f"{path}: not UTF-8 text; expected {wanted}.") from None
  except OSError as error:
    raise PreferenceError(f"{path}: {error.strerror}; expected {wanted}.") from None
  if len(text) > _LARGEST:
    raise PreferenceError(f"{path}: more than {_LARGEST} characters; expected {wanted}.")
  try:
    return yaml.load(text, _Loader)
  except RecursionError:
    raise PreferenceError(
      f"{path}: not valid YAML (nested too deeply); expected {wanted}."
    ) from None
  except (
    yaml.YAMLError,
    # What a value that does not fit its tag, such as a date without a day, comes to.
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
  ) as error:
    reason = " ".join(str(error).split())[:300]
    raise PreferenceError(f"{path}: not valid YAML ({reason}); expected {wanted}.") from None
