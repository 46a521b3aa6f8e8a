// The CUDA runtime on a CPU: devices, memory, streams, events, capture and graphs, with the errors that CUDA gives.
#include "device.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace device {

Settings settings;
std::recursive_mutex mutex;

static std::map<std::string, long long> counts;
static std::vector<std::string> problems;
void count(const std::string& what, long long n) { counts[what] += n; }
int problem(const std::string& what, int error) {
  problems.push_back(what);
  return error;
}

static thread_local int chosen = 0;
int current_device() { return chosen; }

// ------------------------------------------------------------------------------------------------ memory

struct Block { size_t bytes; int device; };
static std::map<char*, Block> blocks, pinned;
static std::map<int, long long> in_use, peak;

static bool lies_in(const std::map<char*, Block>& known, const void* at, size_t bytes) {
  auto next = known.upper_bound((char*)at);
  if (next == known.begin()) return false;
  --next;
  return (char*)at + bytes <= next->first + next->second.bytes;
}
bool is_device_memory(const void* at, size_t bytes) { return lies_in(blocks, at, bytes); }

static void* pages(size_t bytes) {  // of zeros, and none is there until it is touched
  void* made = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return made == MAP_FAILED ? nullptr : made;
}

// ------------------------------------------------------------------------------------------------ streams

static std::set<Stream*> streams;
static std::vector<Stream*> destroyed;  // a new stream may get an old one's address, as CUDA does it
static std::map<int, Stream*> legacy;
static thread_local std::map<int, Stream*> per_thread;
static Stream* made(bool blocking) {
  Stream* s = new Stream;
  if (!destroyed.empty()) {
    delete s;
    s = destroyed.back();
    destroyed.pop_back();
    *s = Stream();
  }
  s->blocking = blocking;
  s->device = chosen;
  streams.insert(s);
  return s;
}

Stream* resolve(Stream* s) {
  if ((uintptr_t)s > 2) return s;
  Stream*& known = (uintptr_t)s == 2 ? per_thread[chosen] : legacy[chosen];
  if (!known) known = made(true);
  return known;
}
static bool is_legacy(Stream* s) { return legacy[s->device] == s; }

static Stream* captured_blocking(int of_device) {
  for (Stream* s : streams) if (s->capture && s->blocking && s->device == of_device) return s;
  return nullptr;
}
bool is_capturing(int least_strict) {
  for (Stream* s : streams) if (s->capture && s->mode <= least_strict) return true;
  return false;
}

void drain(Stream* s, uint64_t number) {
  while (s->done < number) {
    Op op = std::move(s->queue.front());
    s->queue.pop_front();
    for (auto& [other, until] : op.after) drain(other, until);
    op.run();
    s->done++;
  }
}
void drain_all() { for (Stream* s : std::set<Stream*>(streams)) drain(s, s->queued); }

static int implicit(Stream* s, const char* what) {  // what the legacy stream does while a stream that waits for it is captured
  if (!is_legacy(s)) return OK;
  Stream* captured = captured_blocking(s->device);
  if (!captured) return OK;
  captured->capture->invalid = true;
  return problem(std::string(what) + " on the legacy stream while a blocking stream is captured", CAPTURE_IMPLICIT);
}

static void push(Stream* s, std::function<void()> run, std::vector<std::pair<Stream*, uint64_t>> after = {}) {
  if (is_legacy(s)) {
    for (Stream* other : streams)
      if (other != s && other->blocking && other->device == s->device) after.emplace_back(other, other->queued);
  } else if (s->blocking && legacy[s->device]) {
    after.emplace_back(legacy[s->device], legacy[s->device]->queued);
  }
  s->queue.push_back({std::move(run), std::move(after)});
  s->queued++;
  if (!settings.lazy) drain(s, s->queued);
}

int enqueue(Stream* handle, std::string kind, std::function<void()> run) {
  LOCKED;
  Stream* s = resolve(handle);
  if (int error = implicit(s, kind.c_str())) return error;
  if (!s->capture) return push(s, std::move(run)), OK;
  if (s->capture->invalid) return CAPTURE_INVALIDATED;
  s->joined = s->is_origin;
  s->capture->nodes.push_back({std::move(kind), std::move(run)});
  return OK;
}

int may_wait(Stream* s, const char* what) {
  if (!s) {
    for (Stream* other : streams) if (other->capture) other->capture->invalid = true;
    return is_capturing() ? problem(std::string(what) + " while a stream is captured", CAPTURE_UNSUPPORTED) : OK;
  }
  if (int error = implicit(s, what)) return error;
  if (!s->capture) return OK;
  s->capture->invalid = true;
  return problem(std::string(what) + " of a stream that is captured", CAPTURE_UNSUPPORTED);
}

}  // namespace device

using namespace device;

struct Event { Stream* stream = nullptr; uint64_t number = 0; Graph* graph = nullptr; Stream* captured = nullptr; };

extern "C" {

// ------------------------------------------------------------------------------------------------ errors, devices

const char* cudaGetErrorName(int error) {
  static thread_local char other[32];
  switch (error) {
    case OK: return "cudaSuccess";
    case INVALID_VALUE: return "cudaErrorInvalidValue";
    case NO_MEMORY: return "cudaErrorMemoryAllocation";
    case INVALID_DEVICE: return "cudaErrorInvalidDevice";
    case NOT_READY: return "cudaErrorNotReady";
    case CAPTURE_UNSUPPORTED: return "cudaErrorStreamCaptureUnsupported";
    case CAPTURE_INVALIDATED: return "cudaErrorStreamCaptureInvalidated";
    case CAPTURE_UNJOINED: return "cudaErrorStreamCaptureUnjoined";
    case CAPTURE_ISOLATION: return "cudaErrorStreamCaptureIsolation";
    case CAPTURE_IMPLICIT: return "cudaErrorStreamCaptureImplicit";
    case CAPTURED_EVENT: return "cudaErrorCapturedEvent";
  }
  snprintf(other, sizeof other, "cudaError%d", error);
  return other;
}
const char* cudaGetErrorString(int error) {
  switch (error) {
    case INVALID_VALUE: return "invalid argument";
    case NO_MEMORY: return "out of memory";
    case INVALID_DEVICE: return "invalid device ordinal";
    case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
    case CAPTURE_INVALIDATED: return "operation failed due to a previous error during capture";
    case CAPTURE_IMPLICIT: return "operation would make the legacy stream depend on a capturing blocking stream";
  }
  return cudaGetErrorName(error);
}
int cudaGetLastError() { return OK; }
int cudaDriverGetVersion(int* version) { return *version = settings.runtime, OK; }
int cudaRuntimeGetVersion(int* version) { return *version = settings.runtime, OK; }
int cudaGetDevice(int* number) { return *number = chosen, OK; }
int cudaSetDevice(int number) {
  if (number < 0 || number >= settings.devices) return INVALID_DEVICE;
  return chosen = number, OK;
}
int cudaGetDeviceCount(int* n) { return *n = settings.devices, settings.devices ? OK : 100; }
int shared_bytes_of_a_block() {  // that a kernel may ask for
  const int c = settings.capability;
  return (c >= 120 ? 99 : c >= 90 ? 227 : c == 89 || c == 86 ? 99 : c == 80 ? 163 : 64) * 1024;
}
int cudaDeviceGetAttribute(int* value, int attribute, int number) {
  if (number < 0 || number >= settings.devices) return INVALID_DEVICE;
  const int c = settings.capability;
  switch (attribute) {
    case 1: *value = 1024; break;                                    // threads of a block
    case 8: *value = 48 * 1024; break;                               // shared memory of a block
    case 10: *value = 32; break;                                     // warp
    case 16: *value = c == 75 ? 40 : c == 80 ? 108 : c == 86 ? 84 : c == 89 ? 128 : c == 90 ? 132 : 148; break;
    case 39: *value = c == 75 ? 1024 : c == 86 || c == 89 || c >= 120 ? 1536 : 2048; break;
    case 75: *value = c / 10; break;
    case 76: *value = c % 10; break;
    case 81: *value = shared_bytes_of_a_block() + 1024; break;       // of a multiprocessor, about
    case 97: *value = shared_bytes_of_a_block(); break;
    default: *value = 0;
  }
  return OK;
}
int cudaGetDeviceProperties(void*, int number) { return number < settings.devices ? OK : INVALID_DEVICE; }
int cudaDeviceGetPCIBusId(char* to, int n, int number) { return snprintf(to, n, "0000:0%d:00.0", number), OK; }
int cudaDeviceSynchronize() {
  LOCKED;
  count("wait for the device");
  if (int error = may_wait(nullptr, "a wait for the device")) return error;
  return drain_all(), OK;
}
int cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, OK; }
int cudaDeviceEnablePeerAccess(int, unsigned) { return 217; }
int cudaProfilerStart() { return OK; }
int cudaProfilerStop() { return OK; }

// ------------------------------------------------------------------------------------------------ memory

int cudaMalloc(void** to, size_t bytes) {
  LOCKED;
  if (is_capturing(0)) return problem("cudaMalloc in a capture of mode global", CAPTURE_UNSUPPORTED);
  if (in_use[chosen] + (long long)bytes > settings.memory) return NO_MEMORY;
  if (!(*to = pages(bytes + 512))) return NO_MEMORY;
  if (settings.computes) memset(*to, 0xFF, bytes);                   // NaN
  blocks[(char*)*to] = {bytes, chosen};
  in_use[chosen] += bytes;
  if (in_use[chosen] > peak[chosen]) peak[chosen] = in_use[chosen];
  count("cudaMalloc");
  return OK;
}
int cudaMallocAsync(void** to, size_t bytes, Stream*) { return cudaMalloc(to, bytes); }
int cudaFree(void* at) {
  LOCKED;
  if (!at) return OK;
  auto found = blocks.find((char*)at);
  if (found == blocks.end()) return problem("cudaFree of what was not allocated", INVALID_VALUE);
  if (is_capturing(0)) return problem("cudaFree in a capture of mode global", CAPTURE_UNSUPPORTED);
  if (!is_capturing()) drain_all();
  in_use[found->second.device] -= found->second.bytes;
  munmap(at, found->second.bytes + 512);
  blocks.erase(found);
  count("cudaFree");
  return OK;
}
int cudaFreeAsync(void* at, Stream*) { return cudaFree(at); }
int cudaHostAlloc(void** to, size_t bytes, unsigned) {
  LOCKED;
  if (!(*to = pages(bytes + 512))) return NO_MEMORY;
  pinned[(char*)*to] = {bytes, -1};
  return OK;
}
int cudaFreeHost(void* at) {
  LOCKED;
  auto found = pinned.find((char*)at);
  if (found == pinned.end()) return at ? INVALID_VALUE : OK;
  drain_all();
  munmap(at, found->second.bytes + 512);
  pinned.erase(found);
  return OK;
}
int cudaMemGetInfo(size_t* free, size_t* total) {
  LOCKED;
  *total = settings.memory;
  *free = settings.memory - in_use[chosen];
  return OK;
}
struct Attributes { int type, device; void *on_device, *on_host; };
int cudaPointerGetAttributes(Attributes* to, const void* at) {
  LOCKED;
  auto next = blocks.upper_bound((char*)at);
  const bool there = is_device_memory(at);
  *to = {there ? 2 : lies_in(pinned, at, 1) ? 1 : 0, there ? (--next)->second.device : chosen, (void*)at, nullptr};
  return OK;
}

static int copy(void* to, const void* from, size_t bytes, int direction, Stream* handle, bool waits) {
  LOCKED;
  static const char* const names[] = {"copy on the host", "copy to the device", "copy from the device", "copy on the device", "copy"};
  const char* name = names[direction];
  Stream* s = resolve(handle);
  if (!bytes) return OK;
  count(name);
  count(std::string("bytes of a ") + name, bytes);
  if ((direction == 1 || direction == 3) && !is_device_memory(to, bytes)) return problem("a copy to what is no device memory", INVALID_VALUE);
  if ((direction == 2 || direction == 3) && !is_device_memory(from, bytes)) return problem("a copy from what is no device memory", INVALID_VALUE);
  if (waits) if (int error = may_wait(s, "a copy that waits")) return error;
  const bool from_pageable = direction == 1 && !lies_in(pinned, from, bytes), to_pageable = direction == 2 && !lies_in(pinned, to, bytes);
  if (s->capture && (from_pageable || to_pageable)) {
    s->capture->invalid = true;
    return problem(std::string(name) + ", whose host memory is not pinned, in a capture", CAPTURE_UNSUPPORTED);
  }
  const bool skipped = !settings.computes && bytes > (1 << 20);      // weights of a model that is not run
  std::function<void()> run = [=] { if (!skipped) memcpy(to, from, bytes); };
  if (from_pageable && settings.lazy) {                              // read before the call returns
    auto taken = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    run = [=] { memcpy(to, taken->data(), bytes); };
  }
  if (int error = enqueue(handle, name, run)) return error;
  if ((waits || to_pageable) && !s->capture) drain(s, s->queued);
  return OK;
}
int cudaMemcpy(void* to, const void* from, size_t bytes, int direction) { return copy(to, from, bytes, direction, nullptr, true); }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int direction, Stream* s) { return copy(to, from, bytes, direction, s, false); }
int cudaMemsetAsync(void* at, int value, size_t bytes, Stream* s) {
  LOCKED;
  if (bytes && !is_device_memory(at, bytes)) return problem("a memset of what is no device memory", INVALID_VALUE);
  return enqueue(s, "memset", [=] { if (settings.computes) memset(at, value, bytes); });
}
int cudaMemset(void* at, int value, size_t bytes) { return cudaMemsetAsync(at, value, bytes, nullptr); }

// ------------------------------------------------------------------------------------------------ streams and events

int cudaStreamCreateWithPriority(Stream** to, unsigned flags, int) { LOCKED; return *to = made(!(flags & 1)), OK; }
int cudaStreamCreateWithFlags(Stream** to, unsigned flags) { return cudaStreamCreateWithPriority(to, flags, 0); }
int cudaStreamCreate(Stream** to) { return cudaStreamCreateWithPriority(to, 0, 0); }
int cudaStreamDestroy(Stream* s) {
  LOCKED;
  drain(s, s->queued);
  streams.erase(s);
  destroyed.push_back(s);
  return OK;
}
int cudaStreamGetFlags(Stream* s, unsigned* flags) { return *flags = resolve(s)->blocking ? 0 : 1, OK; }
int cudaStreamGetPriority(Stream*, int* priority) { return *priority = 0, OK; }
int cudaStreamSynchronize(Stream* handle) {
  LOCKED;
  Stream* s = resolve(handle);
  count("wait for a stream");
  if (int error = may_wait(s, "a wait")) return error;
  push(s, [] {});                                                    // with what it has to wait for, in the legacy stream
  return drain(s, s->queued), OK;
}
int cudaStreamQuery(Stream* handle) {
  LOCKED;
  Stream* s = resolve(handle);
  if (int error = may_wait(s, "a query")) return error;
  if (s->done == s->queued) return OK;
  return drain(s, s->queued), NOT_READY;
}
int cudaEventCreateWithFlags(Event** to, unsigned) { return *to = new Event, OK; }
int cudaEventCreate(Event** to) { return cudaEventCreateWithFlags(to, 0); }
int cudaEventDestroy(Event* event) { return delete event, OK; }
int cudaEventRecord(Event* event, Stream* handle) {
  LOCKED;
  Stream* s = resolve(handle);
  if (int error = implicit(s, "an event")) return error;
  *event = {s, s->queued, s->capture, s};
  if (!s->capture) push(s, [] {}), event->number = s->queued;
  return OK;
}
int cudaStreamWaitEvent(Stream* handle, Event* event, unsigned) {
  LOCKED;
  Stream* s = resolve(handle);
  if (!event->stream) return OK;
  if (!event->graph && !s->capture) return push(s, [] {}, {{event->stream, event->number}}), OK;
  if (!event->graph) return s->capture->invalid = true, problem("a captured stream waits for an event from outside", CAPTURE_ISOLATION);
  if (!s->capture) s->capture = event->graph, s->is_origin = s->joined = false, s->mode = event->captured->mode;
  if (s->is_origin) event->captured->joined = true;
  return OK;
}
int cudaEventSynchronize(Event* event) {
  LOCKED;
  count("wait for an event");
  if (event->graph) return event->graph->invalid = true, problem("a wait for an event that was captured", CAPTURED_EVENT);
  if (event->stream) drain(event->stream, event->number);
  return OK;
}
int cudaEventQuery(Event* event) {
  LOCKED;
  if (event->graph) return problem("a query of an event that was captured", CAPTURED_EVENT);
  if (!event->stream || event->stream->done >= event->number) return OK;
  return drain(event->stream, event->number), NOT_READY;
}
int cudaEventElapsedTime(float* ms, Event*, Event*) { return *ms = 1000, OK; }  // a CPU's time says nothing of a GPU's
int cudaStreamAddCallback(Stream*, void*, void*, unsigned) { return NOT_SUPPORTED; }

// ------------------------------------------------------------------------------------------------ capture and graphs

int cudaStreamBeginCapture(Stream* handle, int mode) {
  LOCKED;
  Stream* s = resolve(handle);
  if (is_legacy(s)) return CAPTURE_UNSUPPORTED;
  if (s->capture) return INVALID_VALUE;
  s->capture = new Graph;
  s->is_origin = s->joined = true;
  s->mode = mode;
  return OK;
}
int cudaStreamEndCapture(Stream* s, Graph** to) {
  LOCKED;
  *to = nullptr;
  if (!s->capture || !s->is_origin) return INVALID_VALUE;
  Graph* graph = s->capture;
  bool joined = true;
  for (Stream* other : streams)
    if (other->capture == graph) joined &= other->joined, other->capture = nullptr;
  if (graph->invalid) return CAPTURE_INVALIDATED;
  if (!joined) return problem("a capture ends, but another stream's part of it was not waited for", CAPTURE_UNJOINED);
  return *to = graph, OK;
}
int cudaStreamIsCapturing(Stream* handle, int* status) {
  LOCKED;
  Stream* s = resolve(handle);
  if (is_legacy(s) && captured_blocking(s->device)) return CAPTURE_IMPLICIT;
  *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1;
  return OK;
}
static Graph* last_graph;
int cudaGraphInstantiate(Graph** to, Graph* graph, unsigned long long) {
  LOCKED;
  count("graphs");
  return *to = last_graph = new Graph(*graph), OK;
}
int cudaGraphDestroy(Graph* graph) { return delete graph, OK; }
int cudaGraphExecDestroy(Graph* graph) {
  LOCKED;
  drain_all();
  if (graph == last_graph) last_graph = nullptr;
  return delete graph, OK;
}
int cudaGraphUpload(Graph*, Stream*) { return OK; }
int cudaGraphLaunch(Graph* graph, Stream* s) {
  LOCKED;
  count("graph launches");
  return enqueue(s, "graph", [=] { for (Node& node : graph->nodes) node.run(); });
}

// ------------------------------------------------------------------------------------------------ for the tests

void device_set(const char* name, long long value) {
  LOCKED;
  drain_all();
  const std::string key = name;
  if (key == "capability") settings.capability = int(value);
  if (key == "devices") settings.devices = int(value);
  if (key == "runtime") settings.runtime = int(value);
  if (key == "computes") settings.computes = value;
  if (key == "lazy") settings.lazy = value;
  if (key == "memory") settings.memory = value;
}
static std::string text;
const char* device_counts() {  // a line each: name, tab, number
  LOCKED;
  text.clear();
  for (auto& [name, n] : counts) text += name + "\t" + std::to_string(n) + "\n";
  return text.c_str();
}
const char* device_problems() {
  LOCKED;
  text.clear();
  for (auto& line : problems) text += line + "\n";
  problems.clear();
  return text.c_str();
}
const char* device_graph() {  // the kinds of the nodes of the graph that was made last, a line each
  LOCKED;
  text.clear();
  if (last_graph) for (Node& node : last_graph->nodes) text += node.kind + "\n";
  return text.c_str();
}
void device_reset() { LOCKED; counts.clear(); problems.clear(); peak = in_use; }
long long device_peak(int number) { LOCKED; return peak[number]; }
}
