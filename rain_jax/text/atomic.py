"""Text files that are written whole or not at all."""

import errno
import os
import pathlib
import secrets

PART = ".part"  # ending of a file that is about to be put in place
# What file systems say that know no fsync of a folder.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file, whole or not at all; it is on disk when this returns."""
  # Unique by chance: in containers, all processes of a run may have the same number.
  part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{PART}")
  try:
    # Half a character, which JSON may hold and UTF-8 may not, becomes an escape.
    with open(part, "x", encoding="utf-8", errors="backslashreplace") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
  sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
  """Puts the names of new files on disk, where the file system can."""
  try:
    descriptor = os.open(folder, os.O_RDONLY)
  except PermissionError:  # files may be made in a folder that may not be listed
    return
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in _NO_SYNC:
      raise
  finally:
    os.close(descriptor)
