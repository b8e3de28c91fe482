"""The experts' pass of a SwiGLU FFN as kernels of our own, each with its formula in plain torch."""
