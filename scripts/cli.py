"""What all scripts share: flags, and errors in one line."""

import difflib
import gc
import logging as standard_logging
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn


def _interrupted_early(*_) -> None:
  os.write(2, b"stopped before it began\n")
  os._exit(128 + signal.SIGINT)


# The imports below take seconds, in which people change their minds. An exception would show
# where, or be lost in a callback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, _interrupted_early)
# It advises to install PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# Of a GPU's memory JAX takes three quarters; a search is planned for all that is to be had.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

# Hardly anything that imports make is ever garbage; looking for it would take a second of a start.
gc.disable()

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from rain_jax import types
from rain_jax.methods import ahead
from rain_jax.parallel import hosts
from rain_jax.runs import directory
from rain_jax.text.printable import one_line, printable

gc.freeze()
gc.enable()

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "configs"))  # configs import each other by name

_GO_ON = "the same command goes on from here"
_BEGIN_ANEW = "the same command begins anew"

# What the flags raise; all but the first from a config file, or from a value for one of its keys.
_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)

flags.disclaim_key_flags()  # flags that are defined here are the script's own


class _ConfigFile(flags.ArgumentParser):
  """Reads a config file as `reader` does, and gives its section `search` the keys of the search."""

  def __init__(self, reader: flags.ArgumentParser):
    self._reader = reader

  def parse(self, path: str) -> Any:
    return with_search(self._reader.parse(path))

  def flag_type(self) -> str:
    return self._reader.flag_type()


def with_search(config: Any) -> Any:
  """A configuration with a key for each hyperparameter in a run's section `search`.

  A run's section has a variant; what the configuration does not give is None.
  """
  section = config.get("search") if isinstance(config, ml_collections.ConfigDict) else None
  if section is not None and "variant" in section:
    given = section.to_dict()
    with config.unlocked():
      for name, kind in types.hyperparameters().items():
        if name in section:  # given, perhaps as a whole number for a fraction
          del section[name]
        section[name] = config_dict.placeholder(kind)
      section.update(given)
  return config


def define_config(about: str, default: str | None = None) -> flags.FlagHolder:
  """The flag --config: a file whose keys are flags in turn.

  Args:
    about: what it is for, a sentence.
    default: name of a file of `configs/`, without ending; without one the flag must be given.
  """
  said = f"{about} docs/options.md lists its keys, which are flags: --config.KEY=VALUE."
  path = None if default is None else str(REPOSITORY / "configs" / f"{default}.py")
  config = config_flags.DEFINE_config_file("config", None, said)
  flag = flags.FLAGS["config"]
  flag.parser = _ConfigFile(flag.parser)
  try:  # a default is read here, with what the command changes in it
    if path is None:
      flags.mark_flag_as_required("config")
    else:
      flags.set_default(config, path)
    return config
  except _ERRORS as error:
    _fail(_explained(error, sys.argv, path), 2)


def _parse(argv: list[str]) -> list[str]:
  try:
    _check_config_file(_config_path(argv))
    rest = flags.FLAGS(argv)
    _check_workdir()
    return rest
  except Exception as error:  # a config file is a program, and may raise anything
    default = flags.FLAGS["config"].default if "config" in flags.FLAGS else None
    path = _config_path(argv) or default
    if isinstance(error, AttributeError) and "'get_config'" in str(error):
      error = ValueError(f"{path}: defines no get_config(); give the path of a config")
    elif not isinstance(error, _ERRORS):
      error = ValueError(f"{path}: {type(error).__name__}: {error}; fix the file")
    _fail(_explained(error, argv, default), 2)


def _config_path(argv: list[str]) -> str | None:
  """What --config is in a command, whose flags cannot be parsed before its file is read."""
  found = None
  for word, following in zip(argv, [*argv[1:], ""]):
    flag, equals, value = word.partition("=")
    if flag in ("-config", "--config"):
      found = value if equals else following
  return found


def _check_config_file(path: str | None) -> None:
  if path is None:
    return
  file = path.partition(":")[0]
  if not pathlib.Path(file).is_file():
    what = "a folder" if file and pathlib.Path(file).is_dir() else "no such file"
    name = file or "--config="
    raise ValueError(f"{name}: {what}; give the path of a config, {_as_in('config')}")


def _check_workdir() -> None:
  workdir = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
  if workdir and pathlib.Path(workdir).is_file():
    raise ValueError(f"--workdir={workdir} is a file; give a folder, {_as_in('workdir')}")


def _explained(error: Exception, argv: list[str], default: str | None) -> Exception:
  """An error of the flags: what to do, for those whose own words do not say it."""
  path = _config_path(argv) or default
  keys = [m[1] for word in argv if (m := re.match(r"--?(?:no)?config\.([\w.]+)", word))]
  missing = re.findall(r"Flag --(\w+) must have a value", str(error))
  if keys and path is None and "config" in flags.FLAGS:
    missing = ["config"]  # or each of its keys would be an unknown flag
  if missing:
    names = " and ".join(f"--{name}" for name in missing)
    return ValueError(f"give {names}, {_as_in(*missing)}; --help shows more")
  known = _keys_of(path) if keys and isinstance(path, str) else []
  for key in keys if known else ():
    if key not in known:
      near = _near(key, known)
      return ValueError(f"--config.{key}: no such key; {near}docs/options.md lists all")
  return error


def _as_in(*names: str) -> str:
  """How the script's own description gives these flags."""
  shown = sys.modules["__main__"].__doc__ or ""
  found = [re.search(rf"--{name}=\S+", shown) for name in names]
  return "as in " + " ".join(m[0] if m else f"--{name}=..." for name, m in zip(names, found))


def _keys_of(path: str) -> list[str]:
  """Keys and groups of keys of a config file; none if it cannot be read."""
  file, _, argument = path.partition(":")
  try:
    arguments = [argument] if argument else []
    config = with_search(runpy.run_path(file)["get_config"](*arguments))
    return list(_dotted(config.to_dict()))
  except Exception:  # pylint: disable=broad-except
    return []  # what is wrong with it is the error that there is already


def _dotted(values: Mapping, before: str = "") -> Iterator[str]:
  for name, value in values.items():
    yield before + name
    if isinstance(value, Mapping):
      yield from _dotted(value, f"{before}{name}.")


def _near(key: str, known: list[str]) -> str:
  """Keys that may have been meant, the last part of their names alone, too."""
  names = dict.fromkeys(name for one in known for name in (one, one.rpartition(".")[2]))
  for name in difflib.get_close_matches(key, names, 1):
    meant = [one for one in known if one == name or one.endswith(f".{name}")]
    return f"did you mean {' or '.join(meant)}? "
  return ""


def _fail(error: BaseException, code: int) -> NoReturn:
  if isinstance(error, (AttributeError, KeyError)) or "config file" in str(error):
    # The flags wrap what happens around a config file in tracebacks and hints of their own.
    while inner := error.__cause__ or error.__context__:
      error = inner
  if isinstance(error, KeyError):
    error = ValueError(f"the config has no {error}")
  print(f"error: {one_line(error, 2000)}", file=sys.stderr)
  _leave(code)


def _leave(code: int) -> NoReturn:
  """Exits at once, although programs may be compiling, for whose end Python would wait."""
  if ahead.busy():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def _has_devices() -> bool:
  try:
    return bool(jax.devices())
  except (RuntimeError, AssertionError):
    return False


def on_sigterm() -> Callable[[], bool]:
  """From here on SIGTERM only answers a question: whether the process was asked to end."""
  terminated = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: terminated.set())
  return terminated.is_set


def _keep_programs() -> None:
  """Keeps compiled programs: a search takes up to a minute to compile, and later seconds."""
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # Many small programs, too, which together take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if getattr(jax.config, "jax_compilation_cache_dir", None):
    return
  try:
    cache = pathlib.Path.home() / ".cache" / "rain_jax"
    cache.mkdir(parents=True, exist_ok=True)
  except (RuntimeError, OSError):  # containers run under users that the system does not know
    print(
      "no home directory to keep compiled programs in, each start compiles them again: set HOME or"
      " JAX_COMPILATION_CACHE_DIR",
      file=sys.stderr,
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(cache))


def _made_printable(record: standard_logging.LogRecord) -> bool:
  """Messages quote files, whose control characters would drive the terminal."""
  record.msg, record.args = printable(record.getMessage()), None
  return True


def _heed_interrupts() -> None:
  if signal.getsignal(signal.SIGINT) is _interrupted_early:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(main: Callable[[], None], resumes: bool = False) -> None:
  """Runs `main`; known errors become one line and exit code 1, Ctrl-C exit code 130.

  With `resumes`, the same command takes up what a stopped one left; whoever stops it is told.
  A run that SIGTERM stopped exits with code 75 (EX_TEMPFAIL of sysexits.h): start the same
  command again. Schedulers send it before they take a machine away.
  """

  def guarded(argv: list[str]) -> None:
    _heed_interrupts()
    if len(argv) > 1:
      _fail(ValueError(f"unexpected argument {argv[1]!r}; flags begin with --"), 2)
    # Of the libraries' news nobody needs: JAX reports every backend that it does not find.
    logging.set_verbosity(logging.WARNING)
    standard_logging.getLogger("rain_jax").setLevel(standard_logging.INFO)
    _keep_programs()
    for handler in (
      logging.get_absl_handler(),
      *standard_logging.getLogger("transformers").handlers,
    ):
      handler.addFilter(_made_printable)
    try:
      main()
    except directory.Stopped:
      print("stopped; " + _GO_ON, file=sys.stderr)
      _leave(os.EX_TEMPFAIL)
    except (ValueError, OSError) as error:
      _fail(error, os.EX_TEMPFAIL if isinstance(error, hosts.StartError) else 1)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" in str(error):
        _fail(
          ValueError(
            "out of memory: lower batch_size, limits.max_prompt, limits.max_response or"
            " search.max_visited; generate.py --plan shows what needs how much"
          ),
          1,
        )
      if jax.process_count() == 1:
        raise
      # Most likely one of the others is gone; together they can go on.
      _fail(
        ValueError(f"a process of this run is lost ({str(error)[:200]}); {_GO_ON}"), os.EX_TEMPFAIL
      )
    except (RuntimeError, AssertionError):
      # JAX has no error of its own for a platform without devices.
      if _has_devices():
        raise
      _fail(
        ValueError(
          f"no device for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: unset it to run on"
          " what there is, or install JAX for that device, such as jax[cuda12] or jax[tpu]"
        ),
        1,
      )
    except KeyboardInterrupt:
      print("stopped; " + (_GO_ON if resumes else _BEGIN_ANEW), file=sys.stderr)
      _leave(128 + signal.SIGINT)

  try:
    app.run(guarded, flags_parser=_parse)
  finally:
    _heed_interrupts()
