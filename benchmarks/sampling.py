"""Images end to end: 50 DDIM steps and an ancestral chain, beside diffusers' pipelines and its schedulers in a plain loop.

    pip install torch diffusers
    python benchmarks/sampling.py --out benchmarks/sampling.json

From seeds to uint8 pixels, as a user calls each: ours by `Trained.sample`, on all cores; PyTorch's with the fastest layout
and number of threads of those tried at that batch. The images of the DDIM loops are compared before anything is timed, and
what a loop adds is seen beside as many calls of the network alone.
`--first` measures new processes instead: from the command to the first image, without and with what earlier ones compiled.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import peers
import side_by_side
from side_by_side import timed

from ddpm_jax.jobs.trained import Trained

KINDS = {"ddim50": ("ddim", 50, 0.0), "ancestral": ("full", None, 1.0)}  # grid, steps, eta


class Ours:
  def __init__(self, name, cached=False):
    from ddpm_jax.cli import environment

    environment.prepare()
    import jax

    jax.config.update("jax_enable_compilation_cache", cached)
    from ddpm_jax import build
    from ddpm_jax.devices import mesh as layout

    params = jax.device_put(peers.weights(name), layout.replicated(layout.make_mesh()))
    config = peers.config(name)
    self.name = name
    self.trained = Trained(config, build.network(config, peers.module(name), params), 0, "random")

  def ready(self, kind, batch):
    import jax

    from ddpm_jax.devices import alone

    grid, steps, eta = KINDS[kind]
    apply = self.trained.network.apply
    self.apply = (alone.jitted if batch == 1 else jax.jit)(lambda params, x, t: apply(params, x, t, None))
    self.changed = self.trained.changed(sampling=dict(grid=grid, steps=steps, eta=eta, keep_eps=eta == 0, batch_size=batch))
    return {"first_s": round(timed(lambda: self.changed.sample(range(batch))), 1)}

  def time(self, kind, batch):
    return timed(lambda: self.changed.sample(range(batch)))

  def calls(self, kind, batch):
    """Seconds of as many calls of the network, one program each, and nothing else."""
    from ddpm_jax.devices import mesh as layout

    params = self.changed.network.params
    mesh = layout.make_mesh()
    x, t = (layout.put_whole(each, mesh) for each in peers.inputs(self.name, batch))
    self.apply(params, x, t).block_until_ready()
    return timed(lambda: [self.apply(params, x, t) for _ in range(KINDS[kind][1])][-1].block_until_ready())

  def images(self, batch):
    """The images of DDIM from peers.inputs, as float."""
    import jax.numpy as jnp

    from ddpm_jax import build
    from ddpm_jax.diffusion.noise import image_keys
    from ddpm_jax.diffusion.samplers import sample

    config = self.changed.config
    x = jnp.asarray(peers.inputs(self.name, batch)[0])
    denoiser = build.guided(config, self.changed.network, None)
    return np.asarray(sample(image_keys(np.arange(batch)), denoiser, build.sampler(config), x)[0])


class Torch:
  """`way`: "pipeline", "loop", or "compiled", the loop with a compiled network."""

  def __init__(self, name, way, batch):
    import torch

    self.torch = torch
    self.name = name
    self.way = way
    self.network = peers.torch_network(name)
    self.layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    x, t = peers.inputs(name, batch)

    @torch.no_grad()
    def forward(layout):
      self.network.to(memory_format=self.layouts[layout])
      for _ in range(3):
        self.network(peers.to_torch(x, layout), torch.from_numpy(t))

    self.choice = peers.tune(forward, len(os.sched_getaffinity(0)))
    self.network.to(memory_format=self.layouts[self.choice["layout"]])
    self.call = torch.compile(self.network, dynamic=False) if way == "compiled" else self.network

  def tuned(self):
    return self.choice

  def ready(self, kind, batch):
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

    if KINDS[kind][0] == "ddim":
      self.scheduler = DDIMScheduler(num_train_timesteps=1000, set_alpha_to_one=True)
      self.pipeline = DDIMPipeline(self.network, self.scheduler)
    else:
      self.scheduler = DDPMScheduler(num_train_timesteps=1000)
      self.pipeline = DDPMPipeline(self.network, self.scheduler)
    self.pipeline.set_progress_bar_config(disable=True)
    return {"first_s": round(timed(lambda: self._images(kind, batch)), 1)}

  def time(self, kind, batch):
    return timed(lambda: self._images(kind, batch))

  def calls(self, kind, batch):
    """As Ours.calls."""
    x, t = peers.inputs(self.name, batch)
    x = peers.to_torch(x, self.choice["layout"])
    t = self.torch.from_numpy(t)

    def work():
      with self.torch.no_grad():
        for _ in range(KINDS[kind][1]):
          self.call(x, t, return_dict=False)

    return timed(work)

  def images(self, batch):
    x = peers.to_torch(peers.inputs(self.name, batch)[0], self.choice["layout"])
    return self._loop(x, 50).permute(0, 2, 3, 1).numpy()

  def _images(self, kind, batch):
    torch = self.torch
    steps = KINDS[kind][1] or 1000
    generator = torch.Generator().manual_seed(0)
    if self.way == "pipeline":
      images = self.pipeline(batch, generator=generator, num_inference_steps=steps, output_type="np").images
      return (images * 255).round().astype("uint8")
    _, size, channels = peers.NETWORKS[self.name]
    x = torch.randn(batch, channels, size, size, generator=generator)
    x = x.contiguous(memory_format=self.layouts[self.choice["layout"]])
    return ((self._loop(x, steps) * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()

  def _loop(self, x, steps):
    self.scheduler.set_timesteps(steps)
    with self.torch.no_grad():
      for t in self.scheduler.timesteps:
        x = self.scheduler.step(self.call(x, t, return_dict=False)[0], t, x, return_dict=False)[0]
    return x


def first_image(name: str, way: str, batch: int) -> None:
  """What a new process does until it has its first images."""
  contender = Ours(name, cached=True) if way == "ddpm_jax" else _untuned(name, way)
  contender.ready("ddim50", batch)


def _untuned(name, way):
  """PyTorch without the search, which its user has done before."""
  made = Torch.__new__(Torch)
  import torch

  made.torch = torch
  made.name = name
  made.way = way
  made.network = peers.torch_network(name)
  made.layouts = {"channels_last": torch.channels_last}
  made.choice = {"layout": "channels_last"}
  made.network.to(memory_format=torch.channels_last)
  made.call = torch.compile(made.network, dynamic=False) if way == "compiled" else made.network
  return made


def starts(name: str, batch: int) -> dict:
  """Seconds from the command to the first image: with an empty cache, and then again."""
  result = {}
  for way in ("ddpm_jax", "loop", "compiled"):
    with tempfile.TemporaryDirectory() as cache:
      environment = os.environ | {"XDG_CACHE_HOME": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
      command = [sys.executable, __file__, "--network", name, "--start", way, "--batches", str(batch)]
      run = functools.partial(subprocess.run, command, check=True, env=environment, capture_output=True)
      result[way] = {"cold_s": round(timed(run), 1), "warm_s": round(timed(run), 1)}
    print(f"first image, batch {batch}: {way:12} {result[way]}", flush=True)
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--network", default="small", choices=peers.NETWORKS)
  parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
  parser.add_argument("--kinds", nargs="*", default=["ddim50"], choices=KINDS)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--uncompiled", action="store_true", help="leave torch.compile out")
  parser.add_argument("--first", action="store_true", help="time to the first image of new processes")
  parser.add_argument("--start", help=argparse.SUPPRESS)  # of those processes
  parser.add_argument("--out")
  args = parser.parse_args()
  if args.start:
    return first_image(args.network, args.start, args.batches[0])
  result = {"network": args.network, "cases": {}}
  if args.first:
    result["first_image"] = starts(args.network, args.batches[0])
  for batch in [] if args.first else args.batches:
    ways = ["loop", "pipeline"] + ["compiled"] * (not args.uncompiled)
    contenders = {"ddpm_jax": side_by_side.Contender(Ours, args.network)}
    contenders |= {way: side_by_side.Contender(Torch, args.network, way, batch) for way in ways}
    tuned = contenders["loop"].ask("tuned")
    print(f"PyTorch, batch {batch}:", tuned, flush=True)
    for kind in args.kinds:
      start = time.perf_counter()
      first = {name: contender.ask("ready", kind, batch) for name, contender in contenders.items()}
      if kind == "ddim50":
        ours, theirs = (contenders[name].ask("images", batch) for name in ("ddpm_jax", "loop"))
        difference = float(np.abs(ours - theirs).max())
        assert difference < 2e-3, f"the loops draw other images: {difference}"
        first["loop"]["difference"] = float(f"{difference:.1e}")
      times = side_by_side.rounds(contenders, args.rounds, "time", kind, batch)
      times = side_by_side.compare(f"{args.network}, {kind}, batch {batch}", times)
      if kind == "ddim50":
        for name, calls in side_by_side.rounds(contenders, args.rounds, "calls", kind, batch).items():
          times[name]["of_network_alone"] = round(times[name]["median_s"] / calls["median_s"], 3)
        print("  times of the network alone:", {name: times[name]["of_network_alone"] for name in times}, flush=True)
      result["cases"][f"{kind}:{batch}"] = {name: times[name] | first[name] for name in times} | {"tuned": tuned}
      print(f"  first: {first}; {time.perf_counter() - start:.0f} s in all", flush=True)
    for contender in contenders.values():
      contender.close()
  side_by_side.write(args.out, result)


if __name__ == "__main__":
  main()
