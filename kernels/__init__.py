"""C and its doors: compiled on first use with gcc or clang. Without a compiler everything works, only slower.

Why C: a training step and a network's pass wait for memory, and in tensor operations every activation and every
transform of Winograd's convolution makes a trip through it. No library that installs beside PyTorch has a fused
Winograd convolution, its gradients, or this SSIM; oneDNN's, through PyTorch, is what runs without a compiler.
"""
