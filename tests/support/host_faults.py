"""How a piece of gpu_check may not fail on the null GPU."""

HOST_FAULTS = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error",
    "InductorError",
    "BackendCompilerFailed",
    "TorchRuntimeError",
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
    "undefined symbol",
    "ModuleNotFoundError",
)
"""Parts of a failed item's reason. It may fail by values, of which sizes are some: no kernel has run."""
