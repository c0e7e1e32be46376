"""C kernels and their Python interfaces, compiled on first use. Without a compiler everything works, only slower.

The compiler is gcc or clang. Why C: training steps and forward passes are bound by memory, and in tensor operations
every activation and every transform of a Winograd convolution goes through memory. No library that installs beside
PyTorch has a fused Winograd convolution, its gradients, or this SSIM. Without a compiler, PyTorch's convolutions
(oneDNN) run instead.
"""
