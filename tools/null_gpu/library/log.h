// The log of the null GPU: what a process asked of the GPU, in order. Python reads it through the C functions below.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace null_gpu {

enum class Kind : int32_t {
    kernel = 0,          // a kernel of torch, of this project's CUDA, or of Triton
    product = 1,         // a matrix product of cuBLAS
    copy_to_device = 2,  // from page-locked memory, so that the host does not wait
    copy_to_host = 3,
    copy_on_device = 4,
    fill = 5,
    graph = 6,          // a launch of a CUDA graph; `id` is the graph's
    wait = 7,           // a call in which the host waits for the GPU, but for the last `id` entries
    wait_on_gpu = 8,    // a stream waits for an event of another stream
    allocate = 9,       // of device or page-locked memory, beyond torch's cache
    refused = 10,       // a call that CUDA would refuse, such as one forbidden while a graph is captured
    copy_pageable = 11  // to the device from ordinary memory: the driver copies it aside before the call returns
};

// One entry. Sizes that a kind does not have are 0.
struct Event {
    Kind kind = Kind::kernel;
    int32_t name = 0;                        // see null_gpu_name
    uint32_t grid[3] = {};                   // blocks
    uint32_t threads = 0;                    // of a block
    uint32_t shared = 0;                     // dynamic shared memory of a block, bytes
    int32_t id = 0;                          // of a graph; of a wait, see there
    int32_t m = 0, n = 0, k = 0, batch = 0;  // a product's sizes
    int32_t item_size = 0;                   // bytes of an element of a product's first operand
    int32_t padding = 0;
    int64_t bytes = 0;  // copied, filled or allocated
    uint64_t stream = 0;
    int64_t cpu_ns = 0;  // CPU time of the process when the call came
};

// The number of a name; equal names have equal numbers.
int32_t name_id(const char* name);

// Appends an event, to the graph being captured if its stream is part of a capture.
void record(Event event, cudaStream_t stream = nullptr);

// Appends a wait of the host for all work but that of the last `later` entries. While a stream of any capture is meant,
// nothing is appended but a refusal.
cudaError_t record_wait(const char* name, bool forbidden, int32_t later = 0);

// Appends a refusal with its reason; returns `error`, which cudaGetLastError then returns too.
cudaError_t refuse(const char* reason, cudaError_t error);

cudaError_t take_last_error();
cudaError_t last_error();

// Whether a graph is being captured, and so whether calls that synchronise are forbidden.
bool is_capturing();
bool is_capturing(cudaStream_t stream);
// Appends to the capture that `stream` belongs to; false if it belongs to none.
bool record_captured(const Event& event, cudaStream_t stream);
// The graph of `exec`, or 0.
int32_t graph_of(cudaGraphExec_t exec);

}  // namespace null_gpu

extern "C" {
// Number of entries so far.
int64_t null_gpu_count();
// Copies entries first … first + count − 1 of the log (graph 0) or of a captured graph; returns the number copied.
int64_t null_gpu_read(int32_t graph, int64_t first, int64_t count, null_gpu::Event* into);
// A name's text; C++ names as they are in the object file.
const char* null_gpu_name(int32_t id);
// Bytes of device memory that are allocated, and the most that ever were.
int64_t null_gpu_memory();
// Forgets all entries, but not the graphs.
void null_gpu_clear();
}
