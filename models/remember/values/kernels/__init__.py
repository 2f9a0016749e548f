"""Triton kernels of the gather and its transposes, for CUDA and ROCm (extra `kernels`)."""
