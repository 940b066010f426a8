// Coroutines on which the host shim runs the threads of a block.
#pragma once

#include <cstddef>

namespace host {

/// A stack and where execution on it stopped.
class Fiber {
public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber &) = delete;
  Fiber &operator=(const Fiber &) = delete;

  /// Lets the next `resume` begin `body`, which must end by calling `finish`.
  void start(void (*body)());
  /// Runs the fiber until it suspends itself or finishes.
  void resume();
  /// Gives control back to who resumed this fiber.
  void suspend();
  /// As `suspend`, for good.
  void finish();

private:
  void leave(bool for_good);

  static constexpr size_t stack_bytes = 256 * 1024;
  char *stack;
  void *pointer = nullptr;
  void *caller = nullptr;
  // What the address sanitizer must know of a switch.
  void *fake_stack = nullptr;
  void *caller_fake_stack = nullptr;
  const void *caller_stack = nullptr;
  size_t caller_stack_bytes = 0;
  bool fresh = false;

  friend void entered();
};

/// To be called first by the body of a fiber.
void entered();

} // namespace host
