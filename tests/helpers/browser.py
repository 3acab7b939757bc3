"""A headless Chromium for tests of pages; skips where there is none."""

import shutil

import pytest


def open_browser():
  """A selenium driver without network, for the caller to quit."""
  selenium = pytest.importorskip("selenium", reason="selenium is not installed")
  binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not binary or not driver:
    pytest.skip(
      "no chromium and chromedriver; install the Debian packages chromium, chromium-driver"
    )
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for flag in (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-dev-shm-usage",
    "window-size=1400,900",
    "disable-background-networking",
  ):
    options.add_argument(f"--{flag}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  return webdriver.Chrome(
    options=options, service=selenium.webdriver.chrome.service.Service(driver)
  )
