"""How a piece of gpu_check may not fail on the null GPU."""

HOST_FAULTS = (
    "CUDA error",
    "Triton Error",
    "CompilationError",
    "CUBLAS",
    "cuDNN",
    "CUDNN",
    "Timeout",
    "TypeError",
    "AttributeError",
    "NameError",
    "KeyError",
    "ImportError",
    "ModuleNotFoundError",
)
"""Parts of a failed item's reason. It may fail by values, of which sizes are some: no kernel has run."""
