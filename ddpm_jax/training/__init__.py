"""Training: from a loss to checkpoints of weights.

state        the state of a run, one pytree            checkpoints   written in the background, verified when read
step         a state and a batch -> the next state     manifest      the description stored in a checkpoint
optimizer    clipping, Adam, learning rate             digest        a fingerprint of an array's bits
ema          averages of the parameters                writers       TensorBoard, JSON lines, console
trainable    which parameters train                    loop          fit(): trains until the last step
"""
