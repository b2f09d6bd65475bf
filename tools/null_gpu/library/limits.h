// Limits of an H200 (compute capability 9.0), from NVIDIA's CUDA programming guide, table "Technical Specifications".
#pragma once
#include <cstddef>

namespace null_gpu {

constexpr size_t kMemory = 150'754'820'096;
constexpr int kMultiprocessors = 132;
constexpr int kThreadsPerBlock = 1024;
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kSharedPerBlock = 227 << 10;
constexpr int kSharedPerMultiprocessor = 228 << 10;
constexpr int kMaxGridX = 2147483647;
constexpr int kMaxGridYZ = 65535;

}  // namespace null_gpu
