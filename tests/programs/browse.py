"""Moves every control of the page of `ddpm-jax explore` in headless Chromium, and checks what it shows.

ddpm-jax explore --workdir runs/digits --port 7860 --no_browser &
python tests/programs/browse.py http://127.0.0.1:7860 --out screenshots
"""

import argparse
import json
import pathlib
import sys
import time
import urllib.parse
from collections.abc import Callable

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
SIZES = ((1280, 900), (390, 844))


class Browser:
  """A page that is open in Chromium, and what it complained about."""

  def __init__(self, page: Page, url: str, patience: float):
    self.page = page
    self.patience = patience
    self.complaints: list[str] = []
    self.elsewhere: list[str] = []
    host = urllib.parse.urlsplit(url).netloc
    page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: self.complaints.append(str(error)))
    page.on("request", lambda request: self._ask(request.url, host))
    page.goto(url)

  def _ask(self, url: str, host: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("data", "blob") and parts.netloc != host:
      self.elsewhere.append(url)

  def pictures(self, where: str) -> list[str]:
    """The pictures inside the element `where`."""
    return self.page.eval_on_selector_all(f"#{where} img", "all => all.map(one => one.src)")

  def copied(self, name: str) -> dict[str, str]:
    """The lines to copy."""
    read = "one => [...one.querySelectorAll('.cm-line')].map(line => line.innerText).join('\\n')"
    return {kind: self.page.eval_on_selector(f"#{kind}_{name}", read) for kind in ("python", "shell")}

  def after(self, act: Callable[[], None], where: str) -> list[str]:
    """The pictures inside `where` when they are others than before `act`."""
    before = self.pictures(where)
    act()
    until = time.monotonic() + self.patience
    while (now := self.pictures(where)) == before or not now:
      assert time.monotonic() < until, f"{where} shows what it did {self.patience:g} s ago"
      time.sleep(0.1)
    self.page.wait_for_function("!document.querySelector('.status progress')", timeout=1000 * self.patience)
    return self.pictures(where)

  def set(self, control: str, value: float) -> None:
    """Types a number into the control of this id."""
    box = self.page.locator(f"#{control} input[type=number]")
    box.fill(f"{value:g}")
    box.press("Enter")
    box.blur()

  def choose(self, control: str, name: str) -> None:
    """Chooses from the list of this id."""
    self.page.locator(f"#{control} input").click()
    self.page.get_by_role("option", name=name, exact=True).click()

  def press(self, button: str) -> None:
    self.page.locator(f"#{button}").click()


def walk(browser: Browser) -> dict[str, bool]:
  """Whether each thing that the page promises is so, by its name."""
  after = browser.after
  found = {}
  for where in ("drawn_A", "drawn_B"):  # in any order
    browser.page.wait_for_selector(f"#{where} img", timeout=1000 * browser.patience)
  first = browser.pictures("drawn_A")
  right = browser.pictures("drawn_B")
  found["two etas, two pictures from the same seeds"] = first != right and len(first) == len(right) == 4

  noisy = after(lambda: browser.set("eta_A", 1), "drawn_A")
  found["the same eta, the same pictures on both sides"] = noisy == right
  found["eta 0 again, its pictures again"] = after(lambda: browser.set("eta_A", 0), "drawn_A") == first
  way = browser.pictures("way_A")
  found["x_t and belief of 20 steps, and the image"] = len(way) == 41

  guided = after(lambda: browser.set("guidance_A", 3), "drawn_A")
  found["guidance changes pictures"] = guided != first
  after(lambda: browser.set("guidance_A", 1), "drawn_A")
  said = []

  def take_fewer():
    browser.set("steps_A", 5)
    browser.page.wait_for_selector(".status progress", timeout=1000 * browser.patience)
    said.append(browser.page.get_by_text("Compiling a program for 5 steps").count())

  fewer = after(take_fewer, "drawn_A")
  found["other steps say that they compile, above a bar"] = said == [1]
  found["steps change pictures"] = fewer != first and len(browser.pictures("way_A")) == 11
  found["five levels are on the curve"] = browser.page.locator("#way_A circle").count() == 5
  after(lambda: browser.choose("sampler_A", "unipc"), "drawn_A")
  found["a solver has neither eta nor covariance"] = not browser.page.locator("#eta_A").is_visible()
  after(lambda: browser.choose("sampler_A", "ddpm"), "drawn_A")
  found["DDPM has an eta of 1"] = browser.page.locator("#eta_A input[type=number]").input_value() == "1"
  large = after(lambda: browser.choose("covariance_A", "marginal"), "drawn_A")
  found["the covariance changes pictures"] = large != first
  found["variances under two covariances"] = browser.page.locator("#way_A polyline").count() >= 3
  after(lambda: browser.choose("sampler_A", "analytic"), "drawn_A")  # which measures moments first
  found["the optimal variance beside the others"] = "optimal" in browser.page.locator("#way_A").inner_text()
  after(lambda: browser.choose("sampler_A", "ddim"), "drawn_A")

  moved = after(lambda: browser.set("seed", 7), "drawn_B")
  found["other seeds, other pictures"] = not set(moved) & set(right)
  browser.page.wait_for_timeout(1500)
  of_class = after(lambda: browser.choose("label", "3"), "drawn_B")
  found["the class changes pictures"] = of_class != moved

  between = after(lambda: browser.press("run_between"), "between")
  found["ten pictures between two seeds"] = len(between) == 10
  ends = after(lambda: browser.set("weight", 0), "between")
  found["weight 0 is the first seed"] = ends[0] == ends[1] and ends[1:] == between[1:]
  other = after(lambda: browser.set("last", 9), "between")
  found["another second seed, another end"] = other[1] == ends[1] and other[-1] != ends[-1]

  browser.page.get_by_role("tab", name="Encode and decode").click()
  encoded = after(lambda: browser.press("run_encode"), "encode")
  found["an image, its latent, and the image again"] = len(encoded) == 3
  found["another image is encoded"] = after(lambda: browser.set("image", 4), "encode")[0] != encoded[0]

  browser.page.get_by_role("tab", name="Hide and fill in").click()
  filled = after(lambda: browser.press("run_fill"), "fill")
  found["an image, its known part, and the whole"] = len(filled) == 3 and filled[0] != filled[1] != filled[2]
  top = after(lambda: browser.choose("hidden", "top"), "fill")
  found["another part is hidden"] = top[0] == filled[0] and top[1] != filled[1]
  again = after(lambda: browser.set("noise", 5), "fill")
  found["another seed fills in otherwise"] = again[:2] == top[:2] and again[2] != top[2]
  passes = after(lambda: browser.set("resamples", 2), "fill")
  found["another number of passes fills in otherwise"] = passes[:2] == again[:2] and passes[2] != again[2]
  found["another image is filled in"] = after(lambda: browser.set("source", 4), "fill")[0] != again[0]
  return found


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("url")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="where screenshots and found.json go")
  parser.add_argument("--patience", type=float, default=300, help="seconds to wait for pictures")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  with sync_playwright() as playwright:
    chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"])
    browser = Browser(chromium.new_page(viewport=dict(width=1280, height=900)), args.url, args.patience)
    found = walk(browser)
    for line in browser.page.get_by_text("The same in Python").all():
      line.evaluate("one => one.closest('button').click()")
    browser.page.wait_for_timeout(1000)
    lines = {}
    for name in ("A", "B", "between", "encode", "fill"):
      lines[name] = browser.copied(name)
    shown = {name: browser.pictures(name) for name in ("drawn_A", "drawn_B", "between", "encode", "fill")}
    for width, height in SIZES:
      browser.page.set_viewport_size(dict(width=width, height=height))
      browser.page.wait_for_timeout(500)
      wide = browser.page.evaluate("document.documentElement.scrollWidth")
      found[f"{width} pixels are enough"] = wide <= width
      browser.page.screenshot(path=args.out / f"{width}.png", full_page=True)
    found["no complaints on the console"] = not browser.complaints
    found["no requests to other hosts"] = not browser.elsewhere
    chromium.close()
  result = dict(found=found, complaints=browser.complaints, elsewhere=browser.elsewhere, lines=lines, pictures=shown)
  (args.out / "found.json").write_text(json.dumps(result, indent=1))
  for name, so in found.items():
    print("yes" if so else "NO ", name)
  return 0 if all(found.values()) else 1


if __name__ == "__main__":
  sys.exit(main())
