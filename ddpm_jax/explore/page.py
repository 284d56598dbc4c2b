"""The page: controls, what they change, and the same as Python and as a command line. It is made of Gradio's components."""

import concurrent.futures
import dataclasses
import html
import time
from collections.abc import Callable, Iterator
from typing import Any

from ddpm_jax import build
from ddpm_jax.errors import UserError
from ddpm_jax.explore import drawing, edits, pictures, settings
from ddpm_jax.explore.choices import ABOUT, AS_THE_SAMPLER_SAYS, Choices
from ddpm_jax.explore.settings import Origin, Say, Settings
from ddpm_jax.jobs.trained import Trained

WIDTH = 240  # pixels that a control needs; on a phone they stand one below the other
ETAS = {"A": 0.0, "B": 1.0}  # of the two sides at first: DDIM and DDPM


def build_page(trained: Trained, origin: Origin | None, offered: Choices) -> Any:
  """The page of a network, as gradio.Blocks.

  Args:
    origin: how it was loaded, for the lines to copy. None: it is not on disk, and there are none.
    offered: what there is to choose from.
  """
  return _Page(trained, origin, offered).build()


class _Page:
  def __init__(self, trained: Trained, origin: Origin | None, offered: Choices):
    import gradio as gr  # an extra

    self.gr = gr
    self.trained = trained
    self.origin = origin
    self.choices = offered

  def build(self) -> Any:
    gr = self.gr
    with gr.Blocks(title="ddpm-jax explore", analytics_enabled=False) as page:
      gr.HTML(self._header())
      with gr.Row(equal_height=True):
        seed = self._number("seed", "Seed")
        named = [("all in turn", ""), *(self.choices.classes or [])]
        label = self._list("label", "Class y", named, "", visible=self.choices.classes is not None)
      with gr.Row():
        sides = [self._side(page, letter, seed, label) for letter in ETAS]
      self._edits(sides[0], seed, label)
    return page

  def _header(self) -> str:
    config = self.trained.config
    height, width, channels = self.trained.image_shape
    return pictures.block(
      f"<h1>Explore {'a network' if self.origin is None else html.escape(self.origin.workdir)}</h1>"
      f"<p class='quiet'>{config.data.name}, {height}×{width}×{channels} pixels, {build.schedule(config).T} levels, "
      f"step {self.trained.step}, {self.trained.weights}. Move one control, and see what changes.</p>"
    )

  # ---------------------------------------------------------------- two settings side by side

  def _side(self, page: Any, letter: str, seed: Any, label: Any) -> list[Any]:
    """One of the two settings: pictures, controls, the way from noise. Returns its controls."""
    gr = self.gr
    start = self.choices.start(ETAS[letter])
    gaussian = settings.is_gaussian(start.sampler)
    with gr.Column(min_width=280):
      gr.HTML(pictures.block(f"<h2>Setting {letter}</h2>"))
      shown = gr.HTML(elem_id=f"drawn_{letter}")
      status = self._status()
      with gr.Row(equal_height=True):
        sampler = self._list(f"sampler_{letter}", "Sampler", self.choices.samplers, start.sampler)
        steps = self._slider(f"steps_{letter}", "Steps K", 1, self.choices.T, start.steps)
      with gr.Row(equal_height=True):
        eta = self._slider(f"eta_{letter}", "Noise η", 0, 1, ETAS[letter], 0.05, visible=gaussian)
        named = [("as the sampler says", AS_THE_SAMPLER_SAYS), *((name, name) for name in self.choices.covariances)]
        covariance = self._list(f"covariance_{letter}", "Covariance", named, AS_THE_SAMPLER_SAYS, visible=gaussian)
      guidance = self._slider(f"guidance_{letter}", "Guidance s", 0, 8, 1, 0.25, visible=self.choices.guides)
      way = gr.HTML(elem_id=f"way_{letter}")
      lines = self._lines(letter)

    def draw(say: Say, sampler, steps, eta, guidance, covariance, seed, label) -> dict:
      chosen = self.choices.settings(sampler, steps, eta, guidance, covariance)
      seeds = self.choices.seeds_from(seed)
      number = self.choices.label(label)
      found = drawing.draw(self.trained, chosen, seeds, number, say)
      labels = "" if number is None else f", [{number}] * {len(seeds)}"
      flags = [f"--seeds {seeds[0]}-{seeds[-1]}", *([] if number is None else [f"--classes {number}"])]
      return {
        shown: pictures.drawn(found, seeds),
        way: pictures.way(found, seeds[0]),
        **self._copied(lines, chosen, f"run.sample(range({seeds[0]}, {seeds[-1] + 1}){labels})", "sample", *flags),
      }

    def choose(sampler: Any) -> Iterator[list[Any]]:
      settings.one_of(sampler, self.choices.samplers, "Sampler")
      gaussian = settings.is_gaussian(sampler)
      eta = build.presets()[sampler].sampling.get("eta", 1.0)
      yield [gr.update(visible=gaussian, value=eta), gr.update(visible=gaussian, value=AS_THE_SAMPLER_SAYS)]

    controls = [sampler, steps, eta, guidance, covariance]
    how = self._how(draw, [*controls, seed, label], status, [shown, way, *lines], f"draw_{letter.lower()}")
    gr.on([steps.release, eta.input, guidance.input, covariance.input, seed.input, label.input, page.load], **how)
    chosen = sampler.input(
      self._refusing(choose), [sampler], [eta, covariance], preprocess=False, api_name=f"sampler_{letter.lower()}", **QUIET
    )
    chosen.success(**how | {"api_name": False})
    return controls

  # ---------------------------------------------------------------- edits

  def _edits(self, controls: list[Any], seed: Any, label: Any) -> None:
    """Three tabs, each with what the settings of side A can do beside drawing."""
    gr = self.gr
    gr.HTML(pictures.block("<h2>More with setting A</h2>"))
    with gr.Tabs():
      with gr.Tab("Between two seeds"):
        self._between(controls, seed, label)
      with gr.Tab("Encode and decode"):
        self._encode(controls)
      with gr.Tab("Hide and fill in"):
        self._fill(controls)

  def _between(self, controls: list[Any], first: Any, label: Any) -> None:
    gr = self.gr
    with gr.Row(equal_height=True):
      last = self._number("last", "Second seed", 1)
      weight = self._slider("weight", "Weight w of the second seed", 0, 1, 0.5, 0.05)
    button, status, shown, lines = self._results("between", "Draw between the seeds")

    def between(say: Say, *values) -> dict:
      *values, first, label, last, weight = values
      chosen = self.choices.settings(*values)
      number = self.choices.label(label)
      images = edits.mix(self.trained, chosen, first, last, weight, number, say)
      names = [f"w = {weight:g}", *(f"{share / (edits.FRAMES - 1):g}" for share in range(edits.FRAMES))]
      ends = f"{int(first)}, {int(last)}"
      call = f"edit.interpolate(run, {ends}, {edits.FRAMES}, label={number or 0})"
      flags = [f"--seeds {int(first)},{int(last)}", f"--frames {edits.FRAMES}"]
      flags += [] if number is None else [f"--classes {number}"]
      call += f"\nimage = edit.between_seeds(run, {ends}, [{weight}], label={number or 0})"
      rows = pictures.row(images[:1], names[:1]) + pictures.row(images[1:], names[1:])
      return {shown: pictures.block(rows), **self._copied(lines, chosen, call, "edit interpolate", *flags)}

    how = self._how(between, [*controls, first, label, last, weight], status, [shown, *lines], "between")
    gr.on([button.click, last.input, weight.input], **how)

  def _encode(self, controls: list[Any]) -> None:
    gr = self.gr
    image = self._number("image", "Test image")
    button, status, shown, lines = self._results("encode", "Encode and decode")

    def encode(say: Say, *values) -> dict:
      *values, image = values
      chosen = self.choices.settings(*values)
      images, error = edits.encode(self.trained, chosen, image, say)
      row = pictures.row(images, ["x₀, the image", "x_T, its latent", "decoded again"])
      steps = edits.number_of_steps(chosen.of(self.trained))
      text = f'<p class="numbers">Mean square error <b>{error:.5f}</b>, pixels from 0 to 1 (DDIM, table 2).</p>'
      call = f'edit.reconstruct(run, run.dataset("{self.trained.config.data.test_split}"), [{int(image)}], {steps})[0]'
      flags = [f"--images {int(image)}", f"--steps {steps}"]
      copied = self._copied(lines, chosen, call, "edit reconstruct", *flags)
      return {shown: pictures.block(row + text), **copied}

    how = self._how(encode, [*controls, image], status, [shown, *lines], "encode")
    gr.on([button.click, image.input], **how)

  def _fill(self, controls: list[Any]) -> None:
    gr = self.gr
    with gr.Row(equal_height=True):
      image = self._number("source", "Test image")
      hidden = self._list("hidden", "Hidden part", list(edits.HIDDEN), edits.HIDDEN[0])
    with gr.Row(equal_height=True):
      resamples = self._slider("resamples", "Passes", 1, edits.MOST_RESAMPLES, 3)
      noise = self._number("noise", "Seed of the noise")
    button, status, shown, lines = self._results("fill", "Fill in")

    def fill(say: Say, *values) -> dict:
      *values, image, noise, hidden, resamples = values
      chosen = self.choices.settings(*values)
      images = edits.fill(self.trained, chosen, image, noise, hidden, resamples, say)
      run = chosen.of(self.trained)
      jump = edits.jump(run)
      known = f'edit.known_pixels("{hidden}", {run.image_shape[0]}, {run.image_shape[1]})'
      source = f'run.dataset("{run.config.data.test_split}")'
      numbers = f"[{int(image)}], [{int(noise)}]"
      call = f"edit.inpaint(run, {source}, {numbers}, {known}, jump={jump}, resamples={int(resamples)})"
      flags = [f"--images {int(image)}", f"--seeds {int(noise)}", f"--hide {hidden}"]
      flags += [f"--jump {jump}", f"--resamples {int(resamples)}"]
      row = pictures.row(images, ["x₀, the image", "what is known", "filled in"])
      return {shown: pictures.block(row), **self._copied(lines, chosen, call, "edit inpaint", *flags)}

    how = self._how(fill, [*controls, image, noise, hidden, resamples], status, [shown, *lines], "fill")
    gr.on([button.click, image.input, noise.input, hidden.input, resamples.release], **how)

  # ---------------------------------------------------------------- parts

  def _number(self, name: str, label: str, value: int = 0) -> Any:
    """A control for a whole number. `name` is its id, and names its line of ABOUT."""
    return self.gr.Number(value, label=label, info=ABOUT[name], elem_id=name, precision=0, minimum=0, min_width=WIDTH)

  def _slider(self, name: str, label: str, low: float, high: float, value: float, step: float = 1, **how: Any) -> Any:
    """A control for a number. `name` is its id, and begins with the name of its line of ABOUT, as below."""
    how |= dict(label=label, info=ABOUT[name.partition("_")[0]], elem_id=name, buttons=[], min_width=WIDTH)
    return self.gr.Slider(low, high, value, step=step, **how)

  def _list(self, name: str, label: str, options: list[Any], value: str, **how: Any) -> Any:
    """A control for one of several names."""
    how |= dict(label=label, info=ABOUT[name.partition("_")[0]], elem_id=name, min_width=WIDTH)
    return self.gr.Dropdown(options, value=value, **how)

  def _status(self) -> Any:
    return self.gr.HTML(elem_classes="status")

  def _results(self, name: str, verb: str) -> tuple[Any, Any, Any, list[Any]]:
    """A button, and where its status, pictures, and lines to copy go."""
    button = self.gr.Button(verb, elem_id=f"run_{name}")
    status = self._status()
    shown = self.gr.HTML(elem_id=name)
    return button, status, shown, self._lines(name)

  def _lines(self, name: str) -> list[Any]:
    """Where the same in Python and as a command line goes."""
    gr = self.gr
    if self.origin is None:
      return []
    how = dict(interactive=False, wrap_lines=True, lines=1, show_line_numbers=False, buttons=["copy"])
    with gr.Accordion("The same in Python and as a command", open=False):
      return [
        gr.Code(language="python", label="Python", elem_id=f"python_{name}", **how),
        gr.Code(language="shell", label="Command line", elem_id=f"shell_{name}", **how),
      ]

  def _copied(self, lines: list[Any], chosen: Settings, call: str, command: str, *flags: str) -> dict:
    """What to copy, for the two of `lines`, if there are any."""
    if self.origin is None:
      return {}
    bare = dataclasses.replace(chosen, steps=None) if command == "edit reconstruct" else chosen  # which has its own --steps
    return {lines[0]: self.origin.python(chosen, call), lines[1]: self.origin.shell(bare, command, *flags)}

  # ---------------------------------------------------------------- listeners

  def _how(self, work: Callable[..., dict], inputs: list[Any], status: Any, outputs: list[Any], name: str) -> dict:
    """Arguments of a listener that computes work(say, *values), one at a time, and shows what it says in `status`."""

    def listen(*values: Any) -> Iterator[dict]:
      said: list[Any] = ["Starting", None]

      def say(text: str, share: float | None = None) -> None:
        said[:] = text, share

      began = time.monotonic()
      with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, say, *values)
        while concurrent.futures.wait([future], timeout=0.2).not_done:
          yield {status: pictures.progress(said[0], said[1], time.monotonic() - began)}
      yield {status: ""}
      yield future.result()

    how = dict(fn=self._refusing(listen), inputs=inputs, outputs=[status, *outputs], preprocess=False, api_name=name)
    return how | dict(concurrency_limit=1, concurrency_id="jax", trigger_mode="always_last") | QUIET

  def _refusing(self, listen: Callable[..., Iterator[Any]]) -> Callable:
    """`listen`, a generator, with the sentence of a UserError shown to the reader."""

    def listener(*values: Any) -> Iterator[Any]:
      try:
        yield from listen(*values)
      except UserError as error:
        raise self.gr.Error(str(error), title="This cannot be drawn", print_exception=False) from None

    return listener


QUIET = dict(show_progress="hidden")  # the page has bars of its own
