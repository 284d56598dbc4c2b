"""A forward pass and a training step of DDPM's UNet, beside PyTorch eager and torch.compile, all with the same weights.

    pip install torch diffusers
    python benchmarks/network_step.py --out benchmarks/network_step.json

PyTorch's network is diffusers' UNet2DModel; layout and number of threads are the fastest of those tried, for eager and
compiled alike. A training step is loss, gradient, clipping, Adam (fused in PyTorch) and one moving average; batches and
draws are ready before the clock starts there, ours are drawn inside the step. Outputs are compared before anything is timed.
"""

import argparse
import os
import time

import numpy as np
import peers
import side_by_side
from side_by_side import timed

ROUNDS = 5


class Ours:
  """One process, a virtual device per core."""

  def __init__(self, name):
    from ddpm_jax.cli import environment

    environment.prepare()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    from ddpm_jax.devices import mesh as layout

    self.name = name
    self.jax = jax
    self.layout = layout
    self.mesh = layout.make_mesh()
    self.module = peers.module(name)
    self.params = jax.device_put(peers.weights(name), layout.replicated(self.mesh))
    self.programs = {}

  def ready(self, kind, batch):
    """Compiles; seconds until the first result, GFLOP of the equations and as XLA counts them, a loop's once."""
    from ddpm_jax.devices import flops

    start = time.perf_counter()
    work, program, jaxpr = getattr(self, f"_{kind}")(batch)
    work()
    self.programs[kind, batch] = work
    seconds = time.perf_counter() - start
    return {
      "first_s": round(seconds, 1),
      "gflop_per_device": round(program.cost_analysis()["flops"] / 1e9, 2),
      "gflop_of_equations_per_device": round(flops.count(jaxpr) / self.mesh.size / 1e9, 2),
      "temporary_mib_per_device": program.memory_analysis().temp_size_in_bytes >> 20,
    }

  def peak(self):
    """GFLOP/s of each device while all multiply matrices of 2,048 x 2,048, the best of seven."""
    ones = np.ones((self.mesh.size, 2048, 2048), np.float32)
    a = self.layout.put_batch(ones, self.mesh)
    multiply = self.jax.jit(lambda a: self.jax.numpy.einsum("bij,bjk->bik", a, a))
    multiply(a).block_until_ready()
    return 2 * 2048**3 / 1e9 / min(timed(lambda: multiply(a).block_until_ready()) for _ in range(7))

  def time(self, kind, batch):
    return timed(self.programs[kind, batch])

  def output(self, batch):
    return np.asarray(self.programs["forward", batch]())

  def _compiled(self, jitted, *args):
    """(program, its equations), as the training loop compiles its step for a long run."""
    from ddpm_jax.devices import compiler

    return compiler.repeated(jitted, *args).lower(*args).compile(), jitted.trace(*args).jaxpr

  def _forward(self, batch):
    x, t = self.layout.put_batch(peers.inputs(self.name, batch), self.mesh)
    forward = self.jax.jit(lambda params, x, t: self.module.apply({"params": params}, x, t))
    program, jaxpr = self._compiled(forward, self.params, x, t)
    return lambda: self.jax.block_until_ready(program(self.params, x, t)), program, jaxpr

  def _train(self, batch):
    from ddpm_jax import build
    from ddpm_jax.training import optimizer, state, step

    config = peers.config(self.name)
    adam = optimizer.make_optimizer(peers.RATE, clip_norm=peers.CLIP)
    times = build.time_sampler(config)
    train = step.make_train_step(
      build.loss(config), build.training_network(config, self.module), adam, times, mesh=self.mesh, ema_warmup=False
    )
    init = lambda params: state.create(self.jax.random.key(0), params, adam, time_sampler=times.init())
    images = self.layout.put_batch({"image": np.tanh(peers.inputs(self.name, batch)[0])}, self.mesh)
    shardings = self.layout.of_state(self.jax.eval_shape(init, self.params), self.mesh)
    now = self.jax.jit(init, out_shardings=shardings)(self.params)
    program, jaxpr = self._compiled(train, now, images)
    held = [now]  # the step consumes its state

    def work():
      held[0], metrics = program(held[0], images)
      self.jax.block_until_ready((held[0], metrics))

    return work, program, jaxpr


class Torch:
  """Eager, or compiled; tuned on the forward pass of `batch` images."""

  def __init__(self, name, compiled, batch):
    import torch

    self.torch = torch
    self.name = name
    self.compiled = compiled
    self.network = peers.torch_network(name)
    x, t = peers.inputs(name, batch)
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

    @torch.no_grad()
    def forward(layout):
      self.network.to(memory_format=layouts[layout])
      self.network(peers.to_torch(x, layout), torch.from_numpy(t))

    self.choice = peers.tune(forward, len(os.sched_getaffinity(0)))
    self.network.to(memory_format=layouts[self.choice["layout"]])
    self.call = torch.compile(self.network, dynamic=False) if compiled else self.network
    self.programs = {}

  def tuned(self):
    return self.choice

  def ready(self, kind, batch):
    start = time.perf_counter()
    work = getattr(self, f"_{kind}")(batch)
    work()
    self.programs[kind, batch] = work
    return {"first_s": round(time.perf_counter() - start, 1)}

  def time(self, kind, batch):
    return timed(self.programs[kind, batch])

  def output(self, batch):
    return self.programs["forward", batch]().permute(0, 2, 3, 1).numpy()

  def _inputs(self, batch):
    x, t = peers.inputs(self.name, batch)
    return peers.to_torch(x, self.choice["layout"]), self.torch.from_numpy(t)

  def _forward(self, batch):
    x, t = self._inputs(batch)

    def work():
      with self.torch.no_grad():
        return self.call(x, t, return_dict=False)[0]

    return work

  def _train(self, batch):
    torch = self.torch
    (x, t) = self._inputs(batch)
    params = list(self.network.parameters())
    averages = [p.detach().clone() for p in params]
    adam = torch.optim.Adam(params, lr=peers.RATE, fused=True)
    eps = torch.randn_like(x)

    def work():
      self.network.train()
      loss = ((self.call(x, t, return_dict=False)[0] - eps) ** 2).mean()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(params, peers.CLIP, foreach=True)
      adam.step()
      adam.zero_grad(set_to_none=True)
      torch._foreach_lerp_(averages, [p.detach() for p in params], 1e-4)
      self.network.eval()

    return work


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--network", default="cifar", choices=peers.NETWORKS)
  parser.add_argument("--cases", nargs="*", default=["forward:16", "forward:64", "train:16"], help="kind:batch")
  parser.add_argument("--rounds", type=int, default=ROUNDS)
  parser.add_argument("--compile", nargs="*", default=["forward:16", "train:16"], help="cases for torch.compile too")
  parser.add_argument("--out")
  args = parser.parse_args()
  cases = [(kind, int(batch)) for kind, batch in (case.split(":") for case in args.cases)]
  batch = cases[0][1]
  contenders = {
    "ddpm_jax": side_by_side.Contender(Ours, args.network),
    "torch eager": side_by_side.Contender(Torch, args.network, False, batch),
    "torch.compile": side_by_side.Contender(Torch, args.network, True, batch),
  }
  result = {"network": args.network, "tuned": contenders["torch eager"].ask("tuned"), "cases": {}}
  print("PyTorch:", result["tuned"], flush=True)
  for case, (kind, size) in zip(args.cases, cases, strict=True):
    here = {name: c for name, c in contenders.items() if name != "torch.compile" or case in args.compile}
    first = {name: contender.ask("ready", kind, size) for name, contender in here.items()}
    if kind == "forward":
      outputs = {name: contender.ask("output", size) for name, contender in here.items()}
      largest = np.abs(outputs["ddpm_jax"]).max()
      for name, output in outputs.items():
        difference = float(np.abs(output - outputs["ddpm_jax"]).max() / largest)
        assert difference < 1e-4, f"{name} computes something else: {difference}"
        first[name]["difference"] = float(f"{difference:.1e}")
    times = side_by_side.compare(f"{args.network} {case}", side_by_side.rounds(here, args.rounds, "time", kind, size))
    peak = contenders["ddpm_jax"].ask("peak")
    ours = first["ddpm_jax"]
    share = round(ours["gflop_of_equations_per_device"] / times["ddpm_jax"]["median_s"] / peak, 3)
    print(f"  {share} of the {peak:.0f} GFLOP/s that each device reaches in large products", flush=True)
    ours |= {"peak_gflop_per_s": round(peak, 1), "share_of_peak": share}
    result["cases"][case] = {name: times[name] | first[name] for name in here}
    print("  first result:", {name: first[name]["first_s"] for name in here}, flush=True)
  side_by_side.write(args.out, result)
  for contender in contenders.values():
    contender.close()


if __name__ == "__main__":
  main()
