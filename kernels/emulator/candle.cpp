// One file of candle's kernels for the host. SOURCE is the file, EXPORTS one with EXPORT(name) for each of its kernels.
#include "../host/launch.h"

#include "device.h"

#include "cuda_fp16.h"

#include "cuda_bf16.h"
#include "cuda_fp8.h"
#include <cuda/std/limits>
#include <math.h>
#include <stdint.h>

// The device's functions of the same name in other files are others.
namespace {
#include SOURCE
}

#include EXPORTS
