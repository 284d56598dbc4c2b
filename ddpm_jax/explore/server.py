"""Shows the page: in a browser on this machine, or inside a notebook.

from ddpm_jax.explore import server

server.show("runs/digits")  # in a notebook
"""

import importlib.util
import os
import re
import threading
from typing import Any

from ddpm_jax import build
from ddpm_jax.errors import UserError
from ddpm_jax.explore import choices, drawing, pictures
from ddpm_jax.explore.page import ETAS, build_page
from ddpm_jax.explore.settings import Origin
from ddpm_jax.jobs.trained import Trained, check_low_res

SERVED = re.compile(
  r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(assets|static|svelte)/.*"
  r"|/gradio_api/(info|startup-events|theme\.css|reset|cancel|heartbeat/.*|queue/.*|call/.*)"
)  # what a browser asks for; Gradio's routes for files, uploads, and other machines are not among them
SEEDS = 4  # images of each side
LOCAL = ["127.0.0.1", "localhost"]
INSTALL = 'The page needs Gradio: run pip install "gradio>=6,<7", or install the extra "explore" of this package.'


class Served:
  """An ASGI middleware that answers the requests of the page, and refuses all others."""

  def __init__(self, app: Any):
    self.app = app

  async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
    if scope["type"] != "http" or SERVED.fullmatch(scope["path"]):
      await self.app(scope, receive, send)
      return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": b"This page serves no files and takes no uploads."})


def check() -> None:
  """Raises UserError unless Gradio is installed. Importing it takes seconds, in which the first pictures can be drawn."""
  if importlib.util.find_spec("gradio") is None:
    raise UserError(INSTALL)


def show(run: str | os.PathLike | Trained, *, height: int = 1000, **origin: Any) -> Any:
  """Shows the page inside a notebook, also in Colab, and goes on.

  Args:
    run: a directory, the name of published weights, or a network that is not on disk.
    height: of the page, in pixels.
    origin: other fields of settings.Origin.

  Returns:
    The page, whose close() ends it.

  Raises:
    UserError: if Gradio is not installed, and as ddpm_jax.load.
  """
  check()
  found = None if isinstance(run, Trained) else Origin(str(run), **origin)
  trained = run if found is None else found.load()
  return launch(trained, found, inline=True, height=height)


def launch(trained: Trained, origin: Origin | None, *, port: int | None = None, **how: Any) -> Any:
  """Starts the page of a network on 127.0.0.1 in threads of this process, and returns it.

  Args:
    origin: how it was loaded, for the lines to copy. None: it is not on disk.
    port: None: the first free one from 7860.
    how: arguments of gradio.Blocks.launch, such as inbrowser=True.

  Raises:
    UserError: for a network that draws nothing from seeds alone, and if the port is taken.
  """
  build.check_draws(trained.config)
  check_low_res(trained.config.data, None)
  offered = choices.choices(trained, SEEDS)
  start = offered.start(ETAS["A"])
  warm = threading.Thread(target=drawing.draw, args=(trained, start, offered.seeds_from(0)), daemon=True)
  warm.start()  # compiles the program of the first pictures while the page is made
  import gradio as gr
  from starlette.middleware import Middleware
  from starlette.middleware.trustedhost import TrustedHostMiddleware

  guards = [Middleware(Served)]
  if not how.get("inline"):  # a notebook elsewhere reaches the page through a host of its own
    guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL))
  page = build_page(trained, origin, offered)
  fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # no request leaves the machine
  try:
    page.launch(
      server_name="127.0.0.1",
      server_port=port,
      share=False,
      ssr_mode=False,
      prevent_thread_lock=True,
      quiet=True,
      run_history=False,
      footer_links=[],
      enable_monitoring=False,
      allowed_paths=[],
      app_kwargs={"middleware": guards, "docs_url": None, "redoc_url": None, "openapi_url": None},
      theme=gr.themes.Base(**fonts).set(block_info_text_color="color-mix(in srgb, *body_text_color 72%, transparent)"),
      css=pictures.STYLE,
      **how,
    )
  except OSError as error:
    raise UserError(f"The page cannot be served: {error}") from None
  return page
