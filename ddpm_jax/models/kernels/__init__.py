"""Operations with several implementations, one per kind of device. The layers call them and stay free of device details.

convolution   3x3 convolution: cuDNN or XLA's own; on CPUs Winograd's, with gradients that stay fast in loops
winograd      Winograd's convolution
norm          GroupNorm fused with the shift before it and the scale, shift, SiLU and dropout after it
norm_triton   the same for NVIDIA GPUs, one kernel per pass
attention     cuDNN's flash attention where it is allowed, XLA's otherwise
target        the device to compile for, which need not be on this machine

Implementations that depend on the platform alone are chosen when a program is lowered. Those that depend on the chip ask
`target`.
"""
