// Launches a kernel of the host library, with its arguments as the driver takes them: a pointer to each.
#pragma once

#include <cstddef>
#include <tuple>
#include <utility>

#include "cuda.h"

namespace host {

/// Bytes of shared memory that a block may ask for: of an A100, by its data sheet.
constexpr size_t largest_shared_bytes = 163 * 1024;

struct Launch {
  Dim3 grid, block;
  /// Whether a block's threads run in descending order.
  unsigned reversed;
};

/// Calls `thread_body(context)` on every thread of every block.
void run(const Launch &launch, void (*thread_body)(void *), void *context);

template <class... Arguments> struct Call {
  void (*kernel)(Arguments...);
  std::tuple<Arguments...> arguments;

  static void invoke(void *call) {
    auto *self = static_cast<Call *>(call);
    std::apply(self->kernel, self->arguments);
  }
};

template <class... Arguments, size_t... I>
void launch_with(const Launch &launch, void (*kernel)(Arguments...), void **arguments, std::index_sequence<I...>) {
  Call<Arguments...> call{kernel, {*static_cast<Arguments *>(arguments[I])...}};
  run(launch, Call<Arguments...>::invoke, &call);
}

template <class... Arguments> void launch(const Launch &launch, void (*kernel)(Arguments...), void **arguments) {
  launch_with(launch, kernel, arguments, std::index_sequence_for<Arguments...>{});
}

} // namespace host

/// Makes a kernel callable from outside, as `host_<name>`.
#define EXPORT(name) EXPORT_AS(name, name)

/// The same of a template's instance, which has no such name.
#define EXPORT_AS(name, ...)                                                                                       \
  extern "C" void host_##name(const host::Launch *launch, void **arguments) {                                      \
    host::launch(*launch, __VA_ARGS__, arguments);                                                                 \
  }
