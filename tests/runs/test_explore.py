"""The page of ddpm-jax explore: what it computes, what it refuses, and that values need no new program."""

import json
import logging
import pathlib
import shlex
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from PIL import Image
from weights import save_weights

from ddpm_jax import build, config
from ddpm_jax.cli import main
from ddpm_jax.errors import UserError
from ddpm_jax.explore import charts, choices, drawing, edits, pictures, server
from ddpm_jax.explore.settings import Origin, Settings

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["network.channels=8", "network.channel_mult=(1,)", "network.groups=4", "network.attention_resolutions=()"]
CONDITIONAL = ["train.class_conditional=True", "train.label_dropout=0.1"]
DDIM = Settings("ddim", 3, eta=0.0, guidance=1.0)


@pytest.fixture(scope="module", autouse=True)
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # JAX runs already and cannot be given more
    jax.config.update("jax_disable_most_optimizations", True)  # programs run for milliseconds here
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
  """A run of the smallest class-conditional network of the digits, with random weights."""
  folder = tmp_path_factory.mktemp("run")
  made = config.override(config.load("digits:smoke"), [*SMALL, *CONDITIONAL])
  with made.unlocked(), made.data.ignore_type():
    made.data.update(image_size=8, channels=1, num_classes=10)
  params = build.initial_params(build.model(made, 1, 10), jax.random.key(0), 8, 1)
  params = jax.tree.map(lambda w: w + 0.01, params)
  save_weights(str(folder / "checkpoints"), params, made.to_dict(), rate="0.999", step=0)
  return Origin(str(folder))


@pytest.fixture(scope="module")
def trained(origin):
  return origin.load()


@pytest.fixture
def compilations():
  """The names of the programs that are compiled from here on."""
  names = []

  class Names(logging.Handler):
    def emit(self, record):
      if record.msg.startswith("Finished XLA compilation"):
        names.append(record.args[0] if record.args else record.getMessage())

  handler = Names(logging.DEBUG)
  loggers = [logging.getLogger(name) for name in ("jax._src.dispatch", "jax._src.interpreters.pxla")]
  for logger in loggers:
    logger.addHandler(handler)
  with jax.log_compiles(True):
    yield names
  for logger in loggers:
    logger.removeHandler(handler)


def test_a_drawing_is_what_sample_draws(trained):
  drawn = drawing.draw(trained, Settings("ddim", 3, eta=0.5, guidance=2.0), [5, 6], 3)
  np.testing.assert_array_equal(drawn.images, trained.sample([5, 6], [3, 3], sampler="ddim", steps=3, eta=0.5, guidance=2))
  assert drawn.x_t.shape == drawn.x0.shape == (3, 8, 8, 1)
  assert drawn.levels.tolist() == [20, 10, 1]
  assert drawn.evaluations == 6  # two for each step, because the network guides itself
  assert drawn.variances.keys() == {"posterior"}
  assert all(len(variance) == 2 for variance in drawn.variances.values())


def test_the_last_belief_of_ddim_is_the_image(trained):
  drawn = drawing.draw(trained, DDIM, [0], 1)
  np.testing.assert_array_equal(drawn.x0[-1], drawn.images[0])


def test_the_variances_of_ddpm_are_those_of_the_schedule(trained):
  drawn = drawing.draw(trained, Settings("ddpm", 20, eta=1.0, guidance=1.0), [0], 1)
  alpha_bar = build.schedule(trained.config).alpha_bar
  beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
  np.testing.assert_allclose(drawn.variances["marginal"], beta[:0:-1], rtol=1e-5)  # float32
  small = beta[1:] * (1 - alpha_bar[1:-1]) / (1 - alpha_bar[2:])
  np.testing.assert_allclose(drawn.variances["posterior"], small[::-1], rtol=1e-5)


def test_other_values_compile_nothing(trained, compilations):
  said = []
  drawing.draw(trained, DDIM, [0, 1], None, lambda text, share=None: said.append(text))
  drawing.draw(trained, Settings("ddim", 3, eta=0.3, guidance=1.0), [0, 1])
  compilations.clear()
  drawn = [
    drawing.draw(trained, settings, seeds, label, lambda text, share=None: said.append(text))
    for settings, seeds, label in [
      (Settings("ddim", 3, eta=0.5, guidance=1.0), [0, 1], None),
      (Settings("ddim", 3, eta=0.5, guidance=4.0), [0, 1], None),
      (Settings("ddim", 3, eta=1.0, guidance=0.0), [8, 9], 7),
    ]
  ]
  assert compilations == []
  assert not any(one.compiled for one in drawn)
  assert said[-1] == "Drawing"
  more = drawing.draw(
    trained, Settings("ddim", 4, eta=0.0, guidance=1.0), [0, 1], None, lambda text, share=None: said.append(text)
  )
  assert more.compiled and compilations
  assert said[-1].startswith("Compiling a program for 4 steps")


def test_between_two_seeds(trained):
  images = edits.mix(trained, DDIM, 3, 8, 0.0, 2)
  assert len(images) == 1 + edits.FRAMES
  np.testing.assert_array_equal(images[0], images[1])
  ends = trained.sample([3, 8], [2, 2], **DDIM.short)
  # the latents at both ends are sin(theta) / sin(theta) times those of the seeds: a last bit, which can move a grey level
  assert np.abs(images[[1, -1]].astype(int) - ends).max() <= 1


def test_an_image_is_encoded_and_decoded(trained):
  images, error = edits.encode(trained, DDIM, 4)
  real = trained.dataset("test").gather(np.array([4]))[0][0]
  np.testing.assert_array_equal(images[0], real)
  assert images.shape == (3, 8, 8, 1) and error >= 0


def test_a_hidden_part_is_filled_in(trained):
  images = edits.fill(trained, Settings("ddpm", 3, guidance=1.0), 4, 0, "left", 2)
  np.testing.assert_array_equal(images[1][:, :4], 128)
  np.testing.assert_array_equal(images[2][:, 4:], images[0][:, 4:])
  assert (images[2][:, :4] != images[1][:, :4]).any()


def test_samplers_that_a_network_cannot_use_are_not_offered(trained):
  found = choices.choices(trained, 4)
  assert {"ddpm", "ddim", "analytic", "unipc", "dpm++2m"} <= set(found.samplers)
  assert not {"npr", "sn", "iddpm", "dpm_v3"} & set(found.samplers)
  assert found.guides and len(found.classes) == 10 and found.T == 20
  assert found.settings("unipc", 5, 0.5, 2.0, "marginal") == Settings("unipc", 5, guidance=2.0)


def test_lines_to_copy_draw_what_is_shown(trained, origin, tmp_path):
  """They are run: the Python in this process, the command by the same function as on a command line."""
  settings = Settings("ddim", 3, eta=0.25, guidance=2.0, covariance="posterior")
  drawn = drawing.draw(trained, settings, [3, 4], 5)
  found = {}
  exec(origin.python(settings, "run.sample(range(3, 5), [5, 5])"), found)
  np.testing.assert_array_equal(found["images"], drawn.images)
  line = origin.shell(settings, "sample", "--seeds 3-4", "--classes 5", "--formats npz", f"--out {tmp_path}")
  assert main.run(shlex.split(line)[1:]) == 0
  np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["arr_0"], drawn.images)


def test_the_edits_to_copy_are_those_that_are_shown(trained, origin):
  mixed = edits.mix(trained, DDIM, 3, 8, 0.5, 2)
  line = origin.shell(DDIM, "edit interpolate", "--seeds 3,8", f"--frames {edits.FRAMES}", "--classes 2")
  assert main.run(shlex.split(line)[1:]) == 0
  picture = np.asarray(Image.open(pathlib.Path(origin.workdir) / "edits" / "interpolate.png"))
  shown = pictures.pixels.grid(mixed[1:], columns=edits.FRAMES, scale=8)[..., 0]
  np.testing.assert_array_equal(picture, shown)


def test_other_ways_to_load_a_run_are_in_the_lines():
  origin = Origin("my run", ema="0.99", step=3, overrides=("sampling.clip=none",), trust=True)
  assert origin.shell(Settings("ddim", 5), "sample") == (
    "ddpm-jax sample --workdir 'my run' --ema 0.99 --step 3 --trust --sampler ddim --steps 5 --config.sampling.clip=none"
  )
  load = "('my run', ema='0.99', step=3, trust=True, sampler='ddim', steps=5, overrides=['sampling.clip=none'])"
  assert f"run = ddpm_jax.load{load}\n" in origin.python(Settings("ddim", 5), "run.sample([0])")


@pytest.mark.parametrize(
  ("values", "sentence"),
  [
    (dict(sampler="nope"), "Sampler 'nope' is unknown"),
    (dict(sampler=["ddim"]), "is unknown"),
    (dict(steps=2.5), "must be a whole number"),
    (dict(eta="half"), "must be a number"),
    (dict(eta=float("nan")), "must be a number"),
    (dict(guidance=True), "must be a number"),
    (dict(covariance="os:system"), "Covariance 'os:system' is unknown"),
  ],
)
def test_settings_are_checked(values, sentence):
  with pytest.raises(UserError, match=sentence):
    Settings(**dict(sampler="ddim") | values)


def test_a_chart_has_a_dot_for_each_level():
  x = np.arange(5)
  svg = charts.chart([charts.Line("curve", x, x / 4), charts.Line("levels", x[:3], x[:3] / 4, dots=True)], "t", "y")
  assert svg.count("<circle") == 3 and svg.count("<polyline") == 1
  assert "10⁻³" in charts.chart([charts.Line("zero & more", x, np.array([0, 1e-3, 0.1, 1, 1]))], "t", "y", log=True)


def test_where_gradio_is_missing_the_command_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "gradio", None)
  assert main.run(["explore", "--workdir", "nowhere"]) == 2
  assert 'pip install "gradio' in capsys.readouterr().err


# ---------------------------------------------------------------- the page itself, where Gradio is installed


@pytest.fixture(scope="module")
def page(trained, origin):
  pytest.importorskip("gradio")
  page = server.launch(trained, origin)
  yield page.local_url.rstrip("/")
  page.close()


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
  """(status, text) of an answer."""
  request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with opener.open(request) as answer:
      return answer.status, answer.read().decode()
  except urllib.error.HTTPError as error:
    return error.code, error.read().decode()


def call(page: str, name: str, *values) -> str:
  """The last event of an endpoint of the page, called without a browser."""
  _, text = ask(f"{page}/gradio_api/call/{name}", json.dumps({"data": values}).encode())
  return ask(f"{page}/gradio_api/call/{name}/{json.loads(text)['event_id']}")[1].split("event: ")[-1]


GOOD = ["ddim", 3, 0.0, 1.0, ""]


def test_an_endpoint_draws(page, trained):
  event = call(page, "draw_a", *GOOD, 2, 3)
  assert event.startswith("complete")
  drawn = drawing.draw(trained, DDIM, [2, 3, 4, 5], 3)
  assert pictures.picture(drawn.images[0], "seed 2") in json.loads(event.partition("data: ")[2])[1]


@pytest.mark.parametrize(
  ("name", "values", "sentence"),
  [
    ("draw_a", ["../../etc/passwd", 3, 0, 1, "", 0, ""], "Sampler '../../etc/passwd' is unknown"),
    ("draw_a", [{"ddim": 1}, 3, 0, 1, "", 0, ""], "is unknown"),
    ("draw_a", ["ddim", 0, 0, 1, "", 0, ""], "--steps 0 is not a number of steps"),
    ("draw_b", ["ddim", 10**9, 0, 1, "", 0, ""], "1000000000"),
    ("draw_b", ["ddim", 3, -1, 1, "", 0, ""], "eta"),
    ("draw_b", ["ddim", 3, [0], 1, "", 0, ""], "must be a number"),
    ("draw_a", ["ddim", 3, 0, "much", "", 0, ""], "must be a number"),
    ("draw_a", ["ddim", 3, 0, 1, "os:system", 0, ""], "Covariance 'os:system' is unknown"),
    ("draw_a", [*GOOD, -1, ""], "Seed -1"),
    ("draw_a", [*GOOD, 2**32, ""], "Seed 4294967296"),
    ("draw_a", [*GOOD, 0, 99], "Class 99"),
    ("draw_a", [*GOOD, 0, "cat"], "must be a number"),
    ("sampler_a", [7], "Sampler '7' is unknown"),
    ("between", [*GOOD, 0, "", 1, 2.0], "Weight 2.0 must be between 0"),
    ("between", [*GOOD, 0, "", None, 0.5], "must be a number"),
    ("encode", [*GOOD, 10**6], "There is no test image 1000000"),
    ("encode", [*GOOD, "/etc/passwd"], "must be a number"),
    ("fill", [*GOOD, 0, 0, "everything", 2], "Part 'everything' is unknown"),
    ("fill", [*GOOD, 0, 0, "left", 10**6], "--resamples 1000000 must be between 1 and 20"),
    ("fill", [*GOOD, 0.5, 0, "left", 2], "must be a whole number"),
  ],
)
def test_impossible_inputs_are_refused_in_a_sentence(page, name, values, sentence):
  event = call(page, name, *values)
  assert event.startswith("error")
  said = json.loads(event.partition("data: ")[2])["error"]
  assert sentence in said and len(said) <= 300


@pytest.mark.parametrize(
  "path",
  [
    "gradio_api/file=/etc/passwd",
    "gradio_api/file=README.md",
    "gradio_api/file/etc/passwd",
    "gradio_api/proxy=http://example.com/",
    "gradio_api/upload",
    "gradio_api/runs",
    "gradio_api/vibe-code",
    "monitoring",
  ],
)
def test_no_files_are_served_and_none_are_taken(page, path):
  status, text = ask(f"{page}/{path}")
  assert (status, text) == (403, "This page serves no files and takes no uploads.")
  upload = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n--b--\r\n'
  assert ask(f"{page}/{path}", upload, **{"Content-Type": "multipart/form-data; boundary=b"})[0] == 403


@pytest.mark.parametrize("path", ["assets/../../../../../etc/passwd", "static/%2e%2e/%2e%2e/%2e%2e/etc/passwd"])
def test_no_path_leads_out_of_the_page(page, path):
  status, text = ask(f"{page}/{path}")
  assert status >= 400 and "root:" not in text


def test_another_host_is_refused(page):
  """So that a stranger's site cannot reach the page by giving its own name this machine's address."""
  assert ask(page, Host="example.com")[0] == 400


def test_every_control_in_a_browser(page, tmp_path):
  """tests/programs/browse.py moves each control in headless Chromium."""
  pytest.importorskip("playwright")
  program = ROOT / "tests" / "programs" / "browse.py"
  if not pathlib.Path("/usr/bin/chromium").exists():
    pytest.skip("Chromium is not installed")
  done = subprocess.run([sys.executable, program, page, "--out", tmp_path], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
