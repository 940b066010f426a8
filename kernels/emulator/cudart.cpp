// libcudart.so.13 for a machine without a GPU. Candle's kernels for quantised weights are linked into the binary as
// machine code for one compute capability and launched by this runtime; what launches them does not look at the result.
// As with the real one nothing is launched where the binary has no code for the device, and nobody is told.
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include <cxxabi.h>

#include "../host/launch.h"

extern "C" int unmask_emulator_capability();
extern "C" int unmask_emulator_launch(const char *name, const host::Launch *grid, size_t shared_bytes,
                                      size_t most_shared_bytes, void *stream, void **parameters);

namespace {

// Of cudaError_t.
enum Error : int {
  success = 0,
  invalid_value = 1,
  missing_configuration = 52,
  invalid_device_function = 98,
  no_kernel_image = 209,
  not_supported = 801,
};

thread_local int last = success;

int told(int error) {
  if (error != success)
    last = error;
  return error;
}

/// The code that a binary has, as nvcc embeds it: a header, then for each architecture a header and its code.
class FatBinary {
public:
  /// What a binary registers of one of its source files.
  struct Registered {
    uint32_t magic, version;
    const char *code;
  };

  explicit FatBinary(const Registered *registered) : start(registered->code) {}

  /// Whether there is code that runs on devices of this compute capability: machine code of the same number before the
  /// point, or PTX, of one that is not newer.
  bool runs_on(unsigned capability) const {
    const auto header_bytes = at<uint16_t>(start + 6);
    const char *end = start + header_bytes + at<uint64_t>(start + 8);
    const char *entry = start + header_bytes;
    for (; entry < end; entry += at<uint32_t>(entry + 4) + at<uint64_t>(entry + 8)) {
      const auto kind = at<uint16_t>(entry);
      const auto architecture = at<uint32_t>(entry + 28);
      if (architecture <= capability && (kind == ptx || architecture / 10 == capability / 10))
        return true;
    }
    return false;
  }

private:
  static constexpr uint16_t ptx = 1;

  template <class T> static T at(const char *place) {
    T value;
    memcpy(&value, place, sizeof(T));
    return value;
  }

  const char *start;
};

struct Kernel {
  /// As the emulated device knows it: `mul_mat_q_ggml_type_8_8_true` of mul_mat_q<(ggml_type)8, 8, true>.
  std::string name;
  const FatBinary *code;
  /// What a block may ask for of shared memory.
  size_t shared_bytes = 48 * 1024;
};

/// By the functions of the host that launch them.
std::map<const void *, Kernel> &kernels() {
  static std::map<const void *, Kernel> kernels;
  return kernels;
}

std::string name_of(const char *mangled) {
  char *readable = abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr);
  if (!readable)
    return mangled;
  std::string name = readable, plain;
  free(readable);
  if (size_t end = name.find(">("); end != std::string::npos)
    name.resize(end);
  if (name.rfind("void ", 0) == 0)
    name.erase(0, 5);
  for (char letter : name)
    if (isalnum(static_cast<unsigned char>(letter)))
      plain += letter;
    else if (plain.back() != '_')
      plain += '_';
  return plain;
}

struct Configuration {
  host::Dim3 grid, block;
  size_t shared_bytes;
  void *stream;
};
thread_local Configuration configuration;
thread_local bool is_configured = false;

} // namespace

extern "C" {

void **__cudaRegisterFatBinary(const FatBinary::Registered *registered) {
  return reinterpret_cast<void **>(new FatBinary(registered));
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterVar() {}
void __cudaRegisterFunction(void **code, const void *launcher, char *, const char *name) {
  kernels()[launcher] = {name_of(name), reinterpret_cast<const FatBinary *>(code)};
}

unsigned __cudaPushCallConfiguration(host::Dim3 grid, host::Dim3 block, size_t shared_bytes, void *stream) {
  configuration = {grid, block, shared_bytes, stream};
  is_configured = true;
  return success;
}
int __cudaPopCallConfiguration(host::Dim3 *grid, host::Dim3 *block, size_t *shared_bytes, void **stream) {
  if (!is_configured)
    return told(missing_configuration);
  is_configured = false;
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *stream = configuration.stream;
  return success;
}
int __cudaGetKernel(const Kernel **kernel, const void *launcher) {
  auto found = kernels().find(launcher);
  if (found == kernels().end())
    return told(invalid_device_function);
  *kernel = &found->second;
  return success;
}
int __cudaLaunchKernel_ptsz(const Kernel *kernel, host::Dim3 grid, host::Dim3 block, void **parameters,
                            size_t shared_bytes, void *stream) {
  if (!kernel)
    return told(invalid_device_function);
  if (!kernel->code->runs_on(unsigned(unmask_emulator_capability())))
    return told(no_kernel_image);
  host::Launch launch{grid, block, 0};
  return told(
      unmask_emulator_launch(kernel->name.c_str(), &launch, shared_bytes, kernel->shared_bytes, stream, parameters));
}
int cudaFuncSetAttribute(const void *launcher, int attribute, int value) {
  auto found = kernels().find(launcher);
  if (found == kernels().end())
    return told(invalid_device_function);
  if (!found->second.code->runs_on(unsigned(unmask_emulator_capability())))
    return told(no_kernel_image);
  if (attribute != 8 || value < 0 || size_t(value) > host::largest_shared_bytes) // bytes of shared memory
    return told(invalid_value);
  found->second.shared_bytes = size_t(value);
  return success;
}

int cudaGetDevice(int *ordinal) {
  *ordinal = 0;
  return success;
}
int cudaGetLastError() {
  int error = last;
  last = success;
  return error;
}
int cudaPeekAtLastError() { return last; }
const char *cudaGetErrorName(int) { return "cudaError"; }
const char *cudaGetErrorString(int) { return "an error of the emulated runtime"; }

#define REFUSED(name)                                                                                              \
  int name() { return told(not_supported); }

REFUSED(cudaDeviceGetAttribute)
REFUSED(cudaFree)
REFUSED(cudaFreeAsync_ptsz)
REFUSED(cudaFuncGetAttributes)
REFUSED(cudaGetDeviceCount)
REFUSED(cudaMalloc)
REFUSED(cudaMallocAsync_ptsz)
REFUSED(cudaMemsetAsync_ptsz)
REFUSED(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)
REFUSED(cudaSetDevice)
REFUSED(cudaStreamSynchronize_ptsz)
}
