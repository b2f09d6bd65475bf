// Streams, events and the capture of CUDA graphs. Work is done as soon as it is launched, so no call waits; calls in
// which a GPU would keep the host waiting are logged, and those that CUDA forbids during a capture fail as they would.
#include <time.h>

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "log.h"

struct CUstream_st {
    int priority;
};

struct CUevent_st {
    int32_t capture = 0;  // in which it was last recorded; 0 for none
    double milliseconds = 0;
    int64_t place = 0;  // entries of the log when it was last recorded
};

struct CUgraph_st {
    int32_t id;
};

struct CUgraphExec_st {
    int32_t id;
};

namespace null_gpu {
namespace {

struct Capture {
    std::set<cudaStream_t> streams;
    cudaStreamCaptureMode mode;
    std::thread::id thread;

    // Streams of torch do not wait for the legacy stream, so other threads may go on, but for a capture of mode Global.
    bool concerns_this_thread() const {
        return thread == std::this_thread::get_id() || mode == cudaStreamCaptureModeGlobal;
    }
};

struct State {
    std::mutex mutex;
    int32_t last_id = 0;
    std::map<int32_t, Capture> captures;             // in progress
    std::map<int32_t, std::vector<Event>> recorded;  // by graph, from the beginning of its capture
};

State& state() {
    static State* const one = new State;
    return *one;
}

thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

// The capture that a stream belongs to, or 0. The caller has the lock.
int32_t capture_of(const State& s, cudaStream_t stream) {
    for (const auto& [id, capture] : s.captures)
        if (capture.streams.contains(stream)) return id;
    return 0;
}

double milliseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
}

}  // namespace

bool is_capturing() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    for (const auto& [id, capture] : s.captures)
        if (capture.concerns_this_thread()) return true;
    return false;
}

bool is_capturing(cudaStream_t stream) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    return capture_of(s, stream) != 0;
}

bool may_allocate() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (mode_of_thread == cudaStreamCaptureModeRelaxed) return true;
    for (const auto& [id, capture] : s.captures)
        if (capture.mode != cudaStreamCaptureModeRelaxed && capture.concerns_this_thread()) return false;
    return true;
}

bool record_captured(const Event& event, cudaStream_t stream) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (s.captures.empty()) return false;
    const int32_t id = capture_of(s, stream);
    if (id) s.recorded[id].push_back(event);
    return id != 0;
}

const std::vector<Event>* events_of_graph(int32_t graph) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    const auto place = s.recorded.find(graph);
    return place == s.recorded.end() ? nullptr : &place->second;
}

}  // namespace null_gpu

using null_gpu::Kind;
using null_gpu::record_wait;
using null_gpu::refuse;
using null_gpu::state;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int, int priority) {
    *stream = new CUstream_st{priority};
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
    *priority = stream ? stream->priority : 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return record_wait("cudaStreamSynchronize", null_gpu::is_capturing(stream));
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (null_gpu::is_capturing(stream))
        return refuse("cudaStreamQuery during capture", cudaErrorStreamCaptureUnsupported);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
    auto& s = state();
    {
        const std::lock_guard lock(s.mutex);
        if (const auto capture = s.captures.find(event->capture); capture != s.captures.end()) {
            capture->second.streams.insert(stream);
            return cudaSuccess;
        }
    }
    null_gpu::record({.kind = Kind::wait_on_gpu, .name = null_gpu::name_id("cudaStreamWaitEvent")}, stream);
    return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned int) {
    callback(stream, cudaSuccess, data);
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
    function(data);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
    *event = new CUevent_st;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int) {
    auto& s = state();
    const std::lock_guard lock(s.mutex);
    event->capture = null_gpu::capture_of(s, stream);
    event->milliseconds = null_gpu::milliseconds();
    event->place = null_gpu_count();
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    auto& s = state();
    const std::lock_guard lock(s.mutex);
    if (s.captures.contains(event->capture)) return refuse("cudaEventQuery during capture", cudaErrorCapturedEvent);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    {
        auto& s = state();
        const std::lock_guard lock(s.mutex);
        if (s.captures.contains(event->capture))
            return refuse("cudaEventSynchronize during capture", cudaErrorCapturedEvent);
    }
    return record_wait("cudaEventSynchronize", false, static_cast<int32_t>(null_gpu_count() - event->place));
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = static_cast<float>(end->milliseconds - begin->milliseconds);
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    std::swap(*mode, null_gpu::mode_of_thread);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (!stream) return refuse("a capture of the legacy stream", cudaErrorStreamCaptureUnsupported);
    auto& s = state();
    const std::lock_guard lock(s.mutex);
    const int32_t id = ++s.last_id;
    s.captures[id] = {.streams = {stream}, .mode = mode, .thread = std::this_thread::get_id()};
    s.recorded[id];
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    auto& s = state();
    const std::lock_guard lock(s.mutex);
    const int32_t id = null_gpu::capture_of(s, stream);
    if (!id) return cudaErrorStreamCaptureUnsupported;
    s.captures.erase(id);
    *graph = new CUgraph_st{id};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    if (!stream && null_gpu::is_capturing() && null_gpu::mode_of_thread != cudaStreamCaptureModeRelaxed)
        return refuse("the legacy stream during capture", cudaErrorStreamCaptureImplicit);
    *status = null_gpu::is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
    auto& s = state();
    const std::lock_guard lock(s.mutex);
    const int32_t capture = null_gpu::capture_of(s, stream);
    *status = capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    if (id) *id = capture;
    if (graph) *graph = nullptr;
    if (dependencies) *dependencies = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->id};
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
    const auto* events = null_gpu::events_of_graph(graph->id);
    *count = events ? events->size() : 0;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    null_gpu::record({.kind = Kind::graph, .name = null_gpu::name_id("cudaGraphLaunch"), .id = exec->id}, stream);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
}
