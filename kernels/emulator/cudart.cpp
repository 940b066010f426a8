// libcudart.so.13 for a machine without a GPU: what candle's kernels for quantised weights, which are linked and not
// loaded by name, need to start. They are registered and cannot be launched.
#define REFUSED(name)                                                                                              \
  extern "C" int name() { return 801; /* cudaErrorNotSupported */ }

REFUSED(__cudaGetKernel)
REFUSED(__cudaLaunchKernel_ptsz)
REFUSED(__cudaPopCallConfiguration)
REFUSED(cudaDeviceGetAttribute)
REFUSED(cudaFree)
REFUSED(cudaFreeAsync_ptsz)
REFUSED(cudaFuncGetAttributes)
REFUSED(cudaFuncSetAttribute)
REFUSED(cudaGetDevice)
REFUSED(cudaGetDeviceCount)
REFUSED(cudaGetLastError)
REFUSED(cudaMalloc)
REFUSED(cudaMallocAsync_ptsz)
REFUSED(cudaMemsetAsync_ptsz)
REFUSED(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)
REFUSED(cudaPeekAtLastError)
REFUSED(cudaSetDevice)
REFUSED(cudaStreamSynchronize_ptsz)

extern "C" {
unsigned __cudaPushCallConfiguration() { return 1; }
const char *cudaGetErrorName(int) { return "cudaErrorNotSupported"; }
const char *cudaGetErrorString(int) { return "operation not supported"; }

void **__cudaRegisterFatBinary(void *) {
  static void *handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaRegisterFunction() {}
void __cudaRegisterVar() {}
void __cudaUnregisterFatBinary(void **) {}
}
