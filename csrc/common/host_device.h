// Marks a function that runs on the host and, where nvcc compiles it, on a GPU.
#pragma once

#if defined(__CUDACC__)
#define BGPT_HOST_DEVICE __host__ __device__
#else
#define BGPT_HOST_DEVICE
#endif
