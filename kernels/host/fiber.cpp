#include "fiber.h"

#include <cstdint>
#include <cstdlib>

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

// `unmask_switch(&from, to)` keeps the registers that a callee must preserve on the stack, stores the stack
// pointer in `from` and continues at `to`. ucontext would do, but enters the kernel at every switch.
#if defined(__x86_64__)
asm(R"(
.text
.globl unmask_switch
.hidden unmask_switch
.type unmask_switch, @function
unmask_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size unmask_switch, .-unmask_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl unmask_switch
.hidden unmask_switch
.type unmask_switch, %function
unmask_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size unmask_switch, .-unmask_switch
)");
#else
#error "the host shim switches stacks on x86-64 and AArch64 only"
#endif

extern "C" void unmask_switch(void **from, void *to);

namespace host {

namespace {
thread_local Fiber *running = nullptr;
}

Fiber::Fiber() {
  void *memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    abort();
  stack = static_cast<char *>(memory);
}

Fiber::~Fiber() { munmap(stack, stack_bytes); }

void Fiber::start(void (*body)()) {
  auto **top = reinterpret_cast<void **>(stack + stack_bytes);
#if defined(__x86_64__)
  // A return address of nobody keeps the stack aligned as at a call.
  *--top = nullptr;
  *--top = reinterpret_cast<void *>(body);
  for (int i = 0; i < 6; ++i)
    *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i)
    top[i] = nullptr;
  top[11] = reinterpret_cast<void *>(body);
#endif
  pointer = top;
  fresh = true;
}

void Fiber::resume() {
  Fiber *outer = running;
  running = this;
#if SANITIZED
  __sanitizer_start_switch_fiber(&caller_fake_stack, stack, stack_bytes);
#endif
  unmask_switch(&caller, pointer);
#if SANITIZED
  __sanitizer_finish_switch_fiber(caller_fake_stack, nullptr, nullptr);
#endif
  running = outer;
}

void Fiber::leave(bool for_good) {
#if SANITIZED
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, caller_stack, caller_stack_bytes);
#else
  (void)for_good;
#endif
  unmask_switch(&pointer, caller);
#if SANITIZED
  __sanitizer_finish_switch_fiber(fake_stack, &caller_stack, &caller_stack_bytes);
#endif
}

void Fiber::suspend() { leave(false); }
void Fiber::finish() { leave(true); }

void entered() {
#if SANITIZED
  __sanitizer_finish_switch_fiber(nullptr, &running->caller_stack, &running->caller_stack_bytes);
#endif
  running->fresh = false;
}

} // namespace host
