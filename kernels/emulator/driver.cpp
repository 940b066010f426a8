// libcuda.so.1 for a machine without a GPU: the part of CUDA's driver that the CUDA build calls. Memory of the device is
// memory of this process; kernels are those of the host library, by name. What the device does it does when it is asked
// for; what the host may know of it it does not know before it waits.
//
// Stricter than a driver: a call from a thread without a current context fails, an access beyond the end of an
// allocation ends the process, memory that was not written holds NaN, and grids that no card takes are refused.
//
// A copy from or to page-locked memory of the host is under way until the host waits for the stream, or for an event that
// was recorded after it; so late may a card do it, whatever was launched since. If the host has written by then what is
// copied from, the process ends. What is copied to holds NaN until then, and is written at that moment.
//
// UNMASK_EMULATOR_MEMORY  bytes that the device has [default: 16 GiB]
// UNMASK_EMULATOR_CAPABILITY  its compute capability without the point [default: 80]
// UNMASK_EMULATOR_CUDA    the version of CUDA that the driver is for, 12040 for 12.4 [default: 13990, as new as any 13]
// UNMASK_EMULATOR_REPORT  a file for what was done, in JSON, written at the end of the process
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../host/launch.h"

namespace {

// Of CUresult.
enum Result : int {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  invalid_device = 101,
  invalid_context = 201,
  not_found = 500,
  not_supported = 801,
};

using Pointer = unsigned long long;
using Kernel = void (*)(const host::Launch *, void **);

struct Function {
  std::string name;
  /// Null of a kernel that is not built for the host.
  Kernel kernel;
};

struct Module {
  std::string ptx;
  std::map<std::string, Function> functions;
};

struct Stream {
  unsigned number;
};

struct Event {
  /// Whether it was ever recorded.
  bool recorded;
  unsigned stream;
  /// Copies of page-locked memory that were asked for before it was.
  uint64_t copies;
};

/// A copy from or to page-locked memory that the host has not waited for.
struct Copy {
  uint64_t number;
  unsigned stream;
  bool to_host;
  char *host;
  /// What is copied.
  std::string bytes;
};

struct Counts {
  uint64_t launches = 0, products = 0;
  uint64_t to_device = 0, to_device_bytes = 0, to_host = 0, to_host_bytes = 0, within = 0, within_bytes = 0;
  /// Of these the ones from and to page-locked memory, and of the others to the device those that look like shapes.
  uint64_t pinned_to_device = 0, pinned_to_host = 0, shapes_to_device = 0;
  uint64_t synchronisations = 0, allocations = 0, peak_bytes = 0, peak_host_bytes = 0;
  std::map<std::string, uint64_t> kernels;
  /// Streams that work was given to.
  std::set<unsigned> streams;
};

struct Allocation {
  size_t bytes;
  char *mapping;
  size_t mapping_bytes;
};

[[noreturn]] void end(const char *what) {
  fprintf(stderr, "emulated driver: %s\n", what);
  abort();
}

struct Device {
  std::mutex mutex;
  std::map<Pointer, Allocation> allocations;
  /// Page-locked memory of the host, and its bytes.
  std::map<char *, size_t> page_locked;
  /// In the order in which they were asked for.
  std::deque<Copy> under_way;
  uint64_t copies = 0;
  size_t used = 0, memory = size_t(16) << 30;
  unsigned streams = 0;
  int capability = 80;
  const char *report_to = getenv("UNMASK_EMULATOR_REPORT");
  Counts counts;

  Device() {
    if (const char *given = getenv("UNMASK_EMULATOR_MEMORY"))
      memory = strtoull(given, nullptr, 10);
    if (const char *given = getenv("UNMASK_EMULATOR_CAPABILITY"))
      capability = atoi(given);
  }

  ~Device() {
    for (const Copy &copy : under_way)
      check(copy);
    report();
  }

  /// Ends the process if what is copied to the device was written since.
  void check(const Copy &copy) const {
    if (!copy.to_host && memcmp(copy.host, copy.bytes.data(), copy.bytes.size()) != 0)
      end("page-locked memory was written while a copy from it was under way");
  }

  /// The first `count` copies that were asked for are over, as far as they are of `stream`.
  void arrive(unsigned stream, uint64_t count) {
    std::deque<Copy> left;
    for (Copy &copy : under_way)
      if (copy.stream != stream || copy.number >= count)
        left.push_back(std::move(copy));
      else if (copy.to_host)
        memcpy(copy.host, copy.bytes.data(), copy.bytes.size());
      else
        check(copy);
    under_way.swap(left);
  }

  /// How many of these bytes of the host, from the first on, are page-locked.
  size_t page_locked_from(const char *first, size_t bytes) const {
    auto after = page_locked.upper_bound(const_cast<char *>(first));
    if (after == page_locked.begin())
      return 0;
    auto [start, size] = *std::prev(after);
    return first < start + size ? std::min(bytes, size_t(start + size - first)) : 0;
  }

  void report() {
    FILE *file = report_to ? fopen(report_to, "w") : nullptr;
    if (!file)
      return;
    auto number = [&](const char *name, uint64_t value) {
      fprintf(file, "  \"%s\": %llu,\n", name, static_cast<unsigned long long>(value));
    };
    fprintf(file, "{\n");
    number("launches", counts.launches);
    number("products", counts.products);
    number("copies_to_device", counts.to_device);
    number("bytes_to_device", counts.to_device_bytes);
    number("pinned_copies_to_device", counts.pinned_to_device);
    number("pageable_copies_to_device", counts.to_device - counts.pinned_to_device);
    number("pageable_shapes_to_device", counts.shapes_to_device);
    number("copies_to_host", counts.to_host);
    number("bytes_to_host", counts.to_host_bytes);
    number("pinned_copies_to_host", counts.pinned_to_host);
    number("pageable_copies_to_host", counts.to_host - counts.pinned_to_host);
    number("copies_within", counts.within);
    number("bytes_within", counts.within_bytes);
    number("synchronisations", counts.synchronisations);
    number("allocations", counts.allocations);
    number("peak_bytes", counts.peak_bytes);
    number("peak_host_bytes", counts.peak_host_bytes);
    number("streams", counts.streams.size());
    fprintf(file, "  \"kernels\": {");
    const char *before = "\n";
    for (const auto &[name, count] : counts.kernels) {
      fprintf(file, "%s    \"%s\": %llu", before, name.c_str(), static_cast<unsigned long long>(count));
      before = ",\n";
    }
    fprintf(file, "\n  }\n}\n");
    fclose(file);
  }
};

Device &device() {
  static Device device;
  return device;
}

int context_of_the_device;
thread_local void *current = nullptr;

/// What no driver does either, told besides.
Result refuse(Result reason, const char *what) {
  fprintf(stderr, "emulated driver: %s\n", what);
  return reason;
}

bool has_context() {
  if (current == &context_of_the_device)
    return true;
  fprintf(stderr, "emulated driver: a call from a thread without a current context\n");
  return false;
}

size_t page() {
  static const size_t bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

/// Counts what this process holds of the host's memory, mapped files among it. The device's memory, being shared memory, is
/// not in it. The device's mutex is held.
void count_host_memory(Device &of) {
  FILE *status = of.report_to ? fopen("/proc/self/status", "r") : nullptr;
  if (!status)
    return;
  unsigned long long held = 0, kilobytes;
  for (char line[256]; fgets(line, sizeof line, status);)
    if (sscanf(line, "RssAnon: %llu", &kilobytes) == 1 || sscanf(line, "RssFile: %llu", &kilobytes) == 1)
      held += kilobytes * 1024;
  fclose(status);
  if (held > of.counts.peak_host_bytes)
    of.counts.peak_host_bytes = held;
}

/// Memory that ends, but for alignment to 16 bytes, where the process may not go on.
Result allocate(Pointer *pointer, size_t bytes) {
  if (!has_context())
    return invalid_context;
  if (bytes == 0) { // as pools of memory give it; without them it is an error
    *pointer = 0;
    return success;
  }
  Device &of = device();
  std::lock_guard lock(of.mutex);
  if (bytes > of.memory - of.used)
    return out_of_memory;
  size_t aligned = (bytes + 15) / 16 * 16;
  size_t body = (aligned + page() - 1) / page() * page();
  void *mapping = mmap(nullptr, body + page(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED)
    return out_of_memory;
  char *start = static_cast<char *>(mapping);
  mprotect(start + body, page(), PROT_NONE);
  char *place = start + body - aligned;
  // NaN in every floating-point type, and an index beyond every end.
  memset(place, 0xff, bytes);
  *pointer = reinterpret_cast<Pointer>(place);
  of.allocations[*pointer] = {bytes, start, body + page()};
  of.used += bytes;
  ++of.counts.allocations;
  if (of.used > of.counts.peak_bytes)
    of.counts.peak_bytes = of.used;
  return success;
}

Result release(Pointer pointer) {
  if (!has_context())
    return invalid_context;
  Device &of = device();
  std::lock_guard lock(of.mutex);
  if (pointer == 0)
    return success;
  auto found = of.allocations.find(pointer);
  if (found == of.allocations.end())
    return refuse(invalid_value, "memory is freed that is not allocated");
  of.used -= found->second.bytes;
  munmap(found->second.mapping, found->second.mapping_bytes);
  of.allocations.erase(found);
  return success;
}

/// Whether all of these bytes are in one allocation. The device's mutex is held.
bool is_allocated(const Device &of, Pointer first, size_t bytes) {
  auto after = of.allocations.upper_bound(first);
  if (after == of.allocations.begin())
    return bytes == 0;
  auto [start, allocation] = *std::prev(after);
  return first - start + bytes <= allocation.bytes;
}

unsigned number_of(const Stream *stream) { return stream ? stream->number : 0; }

/// Whether memory of the host looks like what candle uploads for its kernels: sizes and strides, words of 64 bits that
/// are all small. Lists of smaller numbers do not, but for some whose every other number is 0.
bool looks_like_shape(const char *host, size_t bytes) {
  const size_t word = 8, most_words = 32;
  if (bytes == 0 || bytes % word != 0 || bytes > most_words * word)
    return false;
  for (size_t at = 0; at < bytes; at += word) {
    uint64_t size;
    memcpy(&size, host + at, word);
    if (size >> 32 != 0)
      return false;
  }
  return true;
}

enum class Direction { to_device, to_host, within };

Result copy(void *to, const void *from, size_t bytes, Direction direction, const Stream *stream) {
  if (!has_context())
    return invalid_context;
  Device &of = device();
  std::lock_guard lock(of.mutex);
  Counts &counts = of.counts;
  bool reads = direction != Direction::to_device, writes = direction != Direction::to_host;
  if ((reads && !is_allocated(of, reinterpret_cast<Pointer>(from), bytes)) ||
      (writes && !is_allocated(of, reinterpret_cast<Pointer>(to), bytes)))
    return refuse(invalid_value, "a copy beyond the ends of an allocation");
  unsigned number = number_of(stream);
  counts.streams.insert(number);
  bool pinned = false;
  if (direction != Direction::within) {
    char *host = static_cast<char *>(direction == Direction::to_device ? const_cast<void *>(from) : to);
    size_t page_locked = of.page_locked_from(host, bytes);
    if (page_locked != 0 && page_locked != bytes)
      return refuse(invalid_value, "a copy beyond the end of page-locked memory");
    pinned = page_locked != 0;
    if (pinned) {
      std::string copied(static_cast<const char *>(from), bytes);
      of.under_way.push_back({of.copies++, number, direction == Direction::to_host, host, std::move(copied)});
    }
  }
  if (pinned && direction == Direction::to_host)
    memset(to, 0xff, bytes);
  else
    memcpy(to, from, bytes);
  // After the copy: it reads what a file was mapped for.
  if (direction == Direction::to_device)
    count_host_memory(of);
  switch (direction) {
  case Direction::to_device:
    ++counts.to_device;
    counts.to_device_bytes += bytes;
    counts.pinned_to_device += pinned;
    counts.shapes_to_device += !pinned && looks_like_shape(static_cast<const char *>(from), bytes);
    break;
  case Direction::to_host:
    ++counts.to_host;
    counts.to_host_bytes += bytes;
    counts.pinned_to_host += pinned;
    // To pageable memory the driver copies before it returns, all that was asked of the stream before done.
    if (!pinned)
      of.arrive(number, of.copies);
    break;
  case Direction::within:
    ++counts.within;
    counts.within_bytes += bytes;
    break;
  }
  return success;
}

Result synchronise(const Stream *stream) {
  if (!has_context())
    return invalid_context;
  Device &of = device();
  std::lock_guard lock(of.mutex);
  ++of.counts.synchronisations;
  of.arrive(number_of(stream), of.copies);
  return success;
}

/// What was recorded of an event that the host waits for, or asks whether it is over, is over.
Result reach(const Event *event) {
  if (!has_context())
    return invalid_context;
  Device &of = device();
  std::lock_guard lock(of.mutex);
  if (event->recorded)
    of.arrive(event->stream, event->copies);
  return success;
}

void *host_library() {
  static void *library = [] {
    Dl_info info;
    std::string path;
    if (dladdr(reinterpret_cast<void *>(&host_library), &info))
      path = info.dli_fname;
    path = path.substr(0, path.rfind('/') + 1) + "libkernels.so";
    void *opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!opened)
      fprintf(stderr, "emulated driver: %s\n", dlerror());
    return opened;
  }();
  return library;
}

void *pointer_of(Pointer pointer) { return reinterpret_cast<void *>(pointer); }

/// Null where it is not built for the host.
Kernel kernel_of_host(const std::string &name) {
  void *library = host_library();
  return library ? reinterpret_cast<Kernel>(dlsym(library, ("host_" + name).c_str())) : nullptr;
}

/// What a block may ask for of shared memory without being allowed more.
constexpr size_t usual_shared_bytes = 48 * 1024;

Result launch(const Function &function, const host::Launch &launch, size_t shared_bytes, size_t most_shared_bytes,
              const Stream *stream, void **parameters) {
  if (!has_context())
    return invalid_context;
  const unsigned most = 65535;
  const auto &[grid, block, reversed] = launch;
  uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.x > 0x7fffffff || grid.y == 0 || grid.y > most || grid.z == 0 || grid.z > most ||
      threads == 0 || threads > 1024 || block.z > 64 || shared_bytes > most_shared_bytes ||
      shared_bytes > host::largest_shared_bytes)
    return refuse(invalid_value, ("a grid that no card takes, of " + function.name).c_str());
  if (!function.kernel)
    return refuse(not_supported, (function.name + " is not built for the host").c_str());
  Device &of = device();
  {
    std::lock_guard lock(of.mutex);
    ++of.counts.launches;
    ++of.counts.kernels[function.name];
    of.counts.streams.insert(number_of(stream));
  }
  function.kernel(&launch, parameters);
  return success;
}

} // namespace

#define API extern "C" __attribute__((visibility("default")))

/// Called by the emulated cuBLAS for each of its products.
API void unmask_emulator_product() {
  Device &of = device();
  std::lock_guard lock(of.mutex);
  ++of.counts.products;
}

API int cuInit(unsigned) { return success; }
API int cuDriverGetVersion(int *version) {
  const char *given = getenv("UNMASK_EMULATOR_CUDA");
  *version = given ? atoi(given) : 13990;
  return success;
}
API int cuDeviceGetCount(int *count) {
  *count = 1;
  return success;
}
API int cuDeviceGet(int *found, int ordinal) {
  *found = ordinal;
  return ordinal == 0 ? success : invalid_device;
}
API int cuDeviceGetName(char *name, int length, int) {
  snprintf(name, size_t(length), "emulated");
  return success;
}
API int cuDeviceGetAttribute(int *value, int attribute, int) {
  // Of CUdevice_attribute, as an A100 has them.
  switch (attribute) {
  case 1: // threads of a block
    *value = 1024;
    return success;
  case 10: // lanes of a warp
    *value = 32;
    return success;
  case 16: // multiprocessors
    *value = 108;
    return success;
  case 75: // compute capability, before the point
    *value = device().capability / 10;
    return success;
  case 76: // and after it
    *value = device().capability % 10;
    return success;
  case 97: // bytes of shared memory of a block that is allowed more than the usual
    *value = host::largest_shared_bytes;
    return success;
  case 115: // memory pools
    *value = 1;
    return success;
  default:
    *value = 0;
    return success;
  }
}
API int cuDevicePrimaryCtxRetain(void **context, int) {
  *context = &context_of_the_device;
  return success;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return success; }
API int cuCtxSetCurrent(void *context) {
  current = context;
  return success;
}
API int cuCtxGetCurrent(void **context) {
  *context = current;
  return success;
}
API int cuCtxSynchronize() {
  if (!has_context())
    return invalid_context;
  Device &of = device();
  std::lock_guard lock(of.mutex);
  ++of.counts.synchronisations;
  for (unsigned stream = 0; stream <= of.streams; ++stream)
    of.arrive(stream, of.copies);
  return success;
}
API int cuCtxDestroy_v2(void *) { return success; }
API int cuMemGetInfo_v2(size_t *unused, size_t *total) {
  Device &of = device();
  std::lock_guard lock(of.mutex);
  *total = of.memory;
  *unused = of.memory - of.used;
  return success;
}

API int cuStreamCreate(Stream **stream, unsigned) {
  Device &of = device();
  std::lock_guard lock(of.mutex);
  *stream = new Stream{++of.streams};
  return success;
}
API int cuStreamDestroy_v2(Stream *stream) {
  delete stream;
  return success;
}
API int cuStreamSynchronize(Stream *stream) { return synchronise(stream); }
API int cuStreamWaitEvent(Stream *, void *, unsigned) { return success; }
API int cuStreamIsCapturing(Stream *, int *status) {
  *status = 0;
  return success;
}
API int cuEventCreate(Event **event, unsigned) {
  *event = new Event{false, 0, 0};
  return success;
}
API int cuEventDestroy_v2(Event *event) {
  delete event;
  return success;
}
API int cuEventRecord(Event *event, Stream *stream) {
  if (!has_context())
    return invalid_context;
  Device &of = device();
  std::lock_guard lock(of.mutex);
  *event = {true, number_of(stream), of.copies};
  return success;
}
API int cuEventSynchronize(Event *event) {
  {
    Device &of = device();
    std::lock_guard lock(of.mutex);
    ++of.counts.synchronisations;
  }
  return reach(event);
}
API int cuEventQuery(Event *event) { return reach(event); }

API int cuMemAllocAsync(Pointer *pointer, size_t bytes, Stream *) { return allocate(pointer, bytes); }
API int cuMemAlloc_v2(Pointer *pointer, size_t bytes) { return allocate(pointer, bytes); }
API int cuMemFreeAsync(Pointer pointer, Stream *) { return release(pointer); }
API int cuMemFree_v2(Pointer pointer) { return release(pointer); }
API int cuDeviceGetDefaultMemPool(void **pool, int) {
  static char only;
  *pool = &only;
  return success;
}
API int cuMemPoolSetAttribute(void *, int, void *) { return success; }
API int cuMemPoolTrimTo(void *, size_t) { return success; }
API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
  if (!has_context())
    return invalid_context;
  *pointer = aligned_alloc(page(), (bytes + page() - 1) / page() * page());
  if (!*pointer)
    return out_of_memory;
  memset(*pointer, 0xff, bytes);
  Device &of = device();
  std::lock_guard lock(of.mutex);
  of.page_locked[static_cast<char *>(*pointer)] = bytes;
  return success;
}
API int cuMemFreeHost(void *pointer) {
  Device &of = device();
  std::lock_guard lock(of.mutex);
  auto found = of.page_locked.find(static_cast<char *>(pointer));
  if (found == of.page_locked.end())
    return refuse(invalid_value, "page-locked memory is freed that is not allocated");
  for (const Copy &copy : of.under_way)
    if (copy.host >= found->first && copy.host < found->first + found->second)
      end("page-locked memory is freed while a copy from or to it is under way");
  of.page_locked.erase(found);
  free(pointer);
  return success;
}
API int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, Stream *stream) {
  return copy(pointer_of(to), from, bytes, Direction::to_device, stream);
}
API int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, Stream *stream) {
  return copy(to, pointer_of(from), bytes, Direction::to_host, stream);
}
API int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, Stream *stream) {
  return copy(pointer_of(to), pointer_of(from), bytes, Direction::within, stream);
}
API int cuMemcpyPeerAsync(Pointer to, void *, Pointer from, void *, size_t bytes, Stream *stream) {
  return copy(pointer_of(to), pointer_of(from), bytes, Direction::within, stream);
}
API int cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, Stream *stream) {
  if (!has_context())
    return invalid_context;
  Device &of = device();
  std::lock_guard lock(of.mutex);
  if (!is_allocated(of, to, bytes))
    return refuse(invalid_value, "memory beyond the ends of an allocation is set");
  memset(pointer_of(to), value, bytes);
  of.counts.streams.insert(number_of(stream));
  return success;
}

API int cuModuleLoadData(Module **module, const void *image) {
  if (!has_context())
    return invalid_context;
  *module = new Module{static_cast<const char *>(image), {}};
  return success;
}
API int cuModuleLoad(Module **, const char *) { return not_supported; }
API int cuModuleUnload(Module *module) {
  delete module;
  return success;
}
API int cuModuleGetFunction(Function **function, Module *module, const char *name) {
  if (module->ptx.find(std::string(".entry ") + name + "(") == std::string::npos)
    return not_found;
  Kernel kernel = kernel_of_host(name);
  std::lock_guard lock(device().mutex);
  auto [entry, is_new] = module->functions.try_emplace(name, Function{name, kernel});
  *function = &entry->second;
  return success;
}
API int cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream *stream, void **parameters,
                       void **) {
  return launch(*function, {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, 0}, shared_bytes, usual_shared_bytes,
                stream, parameters);
}

/// Called by the emulated runtime: the compute capability without the point.
API int unmask_emulator_capability() { return device().capability; }

/// Called by the emulated runtime for its launches. `most_shared_bytes` is what the kernel was allowed.
API int unmask_emulator_launch(const char *name, const host::Launch *grid, size_t shared_bytes, size_t most_shared_bytes,
                               Stream *stream, void **parameters) {
  return launch({name, kernel_of_host(name)}, *grid, shared_bytes, most_shared_bytes, stream, parameters);
}

API int cuGetErrorName(int result, const char **name) {
  *name = result == out_of_memory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR";
  return success;
}
API int cuGetErrorString(int result, const char **text) {
  switch (result) {
  case success:
    *text = "no error";
    break;
  case invalid_value:
    *text = "invalid argument";
    break;
  case out_of_memory:
    *text = "out of memory";
    break;
  case invalid_device:
    *text = "invalid device ordinal";
    break;
  case invalid_context:
    *text = "invalid device context";
    break;
  case not_found:
    *text = "named symbol not found";
    break;
  default:
    *text = "operation not supported";
  }
  return success;
}
