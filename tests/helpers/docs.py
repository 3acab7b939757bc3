"""The pages of the docs, and what stands in their blocks."""

import pathlib
import re
import shlex

from tests.helpers.repository import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
  """The fenced blocks of a page in a language; "" is commands."""
  found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
  return [text for name, text in found if name == language]


def commands(page: pathlib.Path) -> list[list[str]]:
  """Arguments of every `python FILE ...` that a page shows."""
  found = []
  for block in blocks(page, ""):
    for line in block.replace("\\\n", " ").splitlines():
      for part in line.split("&&"):
        words = shlex.split(part, comments=True)
        if words[:1] == ["python"] and words[1].endswith(".py"):
          end = words.index(">") if ">" in words else len(words)
          found.append(words[1:end])
  return found


ALL = [(page, command) for page in PAGES for command in commands(page)]
