"""Measures in one process what needs many devices, and prints JSON.

JAX_NUM_CPU_DEVICES=8 python tests/programs/devices.py DIR
"""

import json
import pathlib
import shutil
import sys

import jax
import tiny_run

from ddpm_jax.devices import mesh as layout
from ddpm_jax.training import checkpoints

MESHES = {"1": (1, 1), "4x2": (8, 2), "1x8": (8, 8)}  # name: devices, fsdp
if "--all" in sys.argv:
  MESHES = {f"{d}x{f}" if f > 1 else f"{d}": (d * f, f) for f in (1, 2, 4, 8) for d in (1, 2, 4, 8) if d * f <= 8}
directory = pathlib.Path(sys.argv[1])
meshes = {name: layout.make_mesh(fsdp=fsdp, devices=jax.devices()[:count]) for name, (count, fsdp) in MESHES.items()}
made = {name: tiny_run.make(mesh, accumulate=2 if name == "1x8" else 1) for name, mesh in meshes.items()}
report = {"curves": {}, "restored": {}, "next_loss": {}, "compiled_by_it": {}}
compiled: list[str] = []  # whatever JAX traced, lowered or compiled
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: compiled.append(event))

for name, mesh in meshes.items():
  final = tiny_run.run(directory / name, mesh, made=made[name])
  report["curves"][name] = tiny_run.losses_of(directory / name)
report["unbroken"] = tiny_run.fingerprint(final)
parts = lambda tree: max(len({str(s.index) for s in x.addressable_shards}) for x in jax.tree.leaves(tree))
report["cut"] = {field: parts(getattr(final, field)) for field in ("params", "ema", "opt_state")}

shutil.rmtree(directory / "1x8" / "40")  # back to step 35, of 8 devices
report["saved"] = None
for name, mesh in meshes.items():
  init, train_step = made[name]
  shapes = jax.eval_shape(init)
  like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout.of_state(shapes, mesh))
  state, manifest = checkpoints.Checkpoints(directory / "1x8").restore(like)
  report["restored"][name] = tiny_run.fingerprint(state)
  batch = layout.put_batch(next(tiny_run.batches(manifest.step)), mesh)
  compiled.clear()
  _, metrics = train_step(state, batch)
  report["compiled_by_it"][name] = [event for event in compiled if "/compile/" in event]
  report["next_loss"][name] = float(metrics["loss"])
report["saved"] = report["restored"]["1x8"]
report["resumed"] = tiny_run.fingerprint(tiny_run.run(directory / "1x8", meshes["1x8"], made=made["1x8"]))
print(json.dumps(report))
