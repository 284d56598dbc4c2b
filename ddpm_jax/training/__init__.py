"""From a loss to weights, and nothing lost on the way.

state        what a run is: one pytree                 checkpoints   written in the background, verified when read
step         a state and a batch -> the next state     manifest      what a checkpoint says about itself
optimizer    clip, Adam, learning rate                 digest        a fingerprint of bits, wherever they live
ema          averages of the parameters                writers       TensorBoard, JSON lines, console
trainable    which parameters learn                    loop          fit(): all of it, until the last step
"""
