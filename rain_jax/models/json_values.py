"""Values of a config.json, checked where each is read; of what is wrong one line says what it is."""

from collections.abc import Mapping
from typing import Any

_LARGEST = 1 << 31  # larger sizes would be allocated before a tensor shows that they are wrong
_LARGEST_NUMBER = 1e38  # what float32 holds


def size(
  config: Mapping[str, Any],
  key: str,
  default: int | None = None,
  most: int = _LARGEST,
  where: str = "config.json",
) -> int:
  """A size, 1 to `most`; without a default it has to be there."""
  found = default if config.get(key) is None else config[key]
  if found is None:
    raise ValueError(f"{where} has no {key!r}, which every model needs")
  if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= most:
    raise ValueError(f"{key} = {found!r:.60} in {where}, expected a whole number, 1 to {most}")
  return found


def number(
  config: Mapping[str, Any], key: str, default: float | None = None, where: str = "config.json"
) -> float:
  """A number above zero that float32 holds; without a default it has to be there."""
  found = default if config.get(key) is None else config[key]
  known = isinstance(found, int | float) and not isinstance(found, bool)
  if not known or not 0 < found < _LARGEST_NUMBER:  # type: ignore[operator]
    wanted = f"a number above 0 and below {_LARGEST_NUMBER:g}"
    raise ValueError(f"{key} = {found!r:.60} in {where}, expected {wanted}")
  return float(found)  # type: ignore[arg-type]


def optional_number(config: Mapping[str, Any], key: str) -> float | None:
  """A number above zero, or None where there is none."""
  return None if config.get(key) is None else number(config, key)


def flag(config: Mapping[str, Any], key: str, where: str = "config.json") -> bool:
  """True or false; false where there is none."""
  found = config.get(key)
  if found is not None and not isinstance(found, bool):
    raise ValueError(f"{key} = {found!r:.60} in {where}, expected true or false")
  return bool(found)


def token_id(config: Mapping[str, Any], key: str) -> int | None:
  """The id of a token, or None where there is none."""
  found = config.get(key)
  if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 0):
    raise ValueError(f"{key} = {found!r:.60} in config.json, expected the id of a token")
  return found


def require(key: str, found: Any, expected: Any) -> None:
  """Raises ValueError unless what was found is the one thing that is supported."""
  if found != expected:
    raise ValueError(
      f"{key} = {found!r:.60} in config.json is not supported, expected {expected!r}"
    )
