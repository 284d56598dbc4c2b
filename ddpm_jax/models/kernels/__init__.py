"""Operations with several implementations, one per kind of device. The layers call them and stay free of device details.

convolution   3x3 convolution: cuDNN or XLA's own; on CPUs Winograd's, with gradients that stay fast in loops
winograd      that form
norm          GroupNorm with the shift before it and the scale, shift, SiLU and dropout after it, as one operation
norm_triton   the same in one kernel per pass, for NVIDIA GPUs
attention     cuDNN's flash attention where it is allowed, XLA's otherwise
target        the device that is compiled for, which need not be one of this machine

What depends on the platform alone is chosen when a program is lowered; what depends on the chip asks `target`.
"""
