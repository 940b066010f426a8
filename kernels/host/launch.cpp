#include "launch.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "fiber.h"

namespace host {

thread_local Dim3 grid, block, block_index;
thread_local const Thread *thread = nullptr;

namespace {

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Runner {
  Fiber fiber;
  Thread self;
  State state;
  unsigned exchanges;
  /// Copies that were asked for and not waited for, in groups, the last of which has not ended.
  std::deque<std::vector<Copy>> copies;
};

struct Warp {
  unsigned lanes, arrived;
  // A lane may begin the next exchange while others still read this one.
  uint64_t words[2][32];
};

struct Block {
  std::vector<std::unique_ptr<Runner>> runners;
  std::vector<Warp> warps;
  unsigned count = 0, arrived = 0;
  void (*body)(void *) = nullptr;
  void *context = nullptr;
  Runner *current = nullptr;
};

thread_local Block state;

void thread_main() {
  entered();
  state.body(state.context);
  state.current->state = State::done;
  state.current->fiber.finish();
}

void wait_in(State where) {
  state.current->state = where;
  state.current->fiber.suspend();
}

void run_block(bool reversed) {
  state.arrived = 0;
  for (auto &warp : state.warps)
    warp.arrived = 0;
  for (unsigned i = 0; i < state.count; ++i) {
    auto &runner = *state.runners[i];
    runner.state = State::ready;
    runner.exchanges = 0;
    runner.copies.assign(1, {});
    runner.fiber.start(thread_main);
  }
  unsigned done = 0;
  while (done < state.count) {
    bool progress = false;
    for (unsigned i = 0; i < state.count; ++i) {
      auto &runner = *state.runners[reversed ? state.count - 1 - i : i];
      if (runner.state != State::ready)
        continue;
      progress = true;
      state.current = &runner;
      thread = &runner.self;
      runner.fiber.resume();
      done += runner.state == State::done;
    }
    if (!progress)
      fail("threads wait at a barrier that others never reach");
  }
  for (unsigned i = 0; i < state.count; ++i)
    for (const auto &group : state.runners[i]->copies)
      if (!group.empty())
        fail("a thread ended without waiting for what it copies");
}

} // namespace

void fail(const char *what) {
  fprintf(stderr, "host shim, block (%u, %u, %u): %s\n", block_index.x, block_index.y, block_index.z, what);
  abort();
}

void block_barrier() {
  if (++state.arrived < state.count) {
    wait_in(State::at_block_barrier);
    return;
  }
  state.arrived = 0;
  for (unsigned i = 0; i < state.count; ++i) {
    auto &runner = *state.runners[i];
    if (runner.state == State::at_block_barrier)
      runner.state = State::ready;
    else if (&runner != state.current)
      fail("a thread ended or waits elsewhere while its block is at a barrier");
  }
}

const uint64_t *exchange(uint64_t word) {
  Runner *self = state.current;
  Warp &warp = state.warps[self->self.warp];
  uint64_t *words = warp.words[self->exchanges++ & 1];
  words[self->self.lane] = word;
  if (++warp.arrived < warp.lanes) {
    wait_in(State::at_warp_barrier);
    return words;
  }
  warp.arrived = 0;
  for (unsigned lane = 0; lane < warp.lanes; ++lane) {
    auto &runner = *state.runners[self->self.warp * 32 + lane];
    if (runner.state == State::at_warp_barrier)
      runner.state = State::ready;
    else if (&runner != self)
      fail("a lane ended or waits elsewhere while its warp shuffles");
  }
  return words;
}

void ask_for_copy(Copy copy) {
  if (reinterpret_cast<uintptr_t>(copy.to) % 16 != 0 || reinterpret_cast<uintptr_t>(copy.from) % 16 != 0)
    fail("a copy of 16 bytes from or to elsewhere than at 16 bytes");
  // A device may write from now on: what is still read there is NaN in all formats.
  memset(copy.to, 0xff, 16);
  state.current->copies.back().push_back(copy);
}

void end_copy_group() { state.current->copies.emplace_back(); }

void wait_for_copies(unsigned left) {
  auto &groups = state.current->copies;
  while (groups.size() > left + 1) {
    for (Copy copy : groups.front())
      if (copy.from)
        memcpy(copy.to, copy.from, 16);
      else
        memset(copy.to, 0, 16);
    groups.pop_front();
  }
}

void run(const Launch &launch, void (*body)(void *), void *context) {
  grid = launch.grid;
  block = launch.block;
  state.count = block.x * block.y * block.z;
  if (state.count == 0 || state.count > 1024 || state.count % 32 != 0)
    fail("a block has 32 to 1024 threads, in whole warps");
  while (state.runners.size() < state.count)
    state.runners.push_back(std::make_unique<Runner>());
  state.warps.assign(state.count / 32, Warp{32, 0, {}});
  for (unsigned i = 0; i < state.count; ++i)
    state.runners[i]->self = {{i % block.x, i / block.x % block.y, i / block.x / block.y}, i % 32, i / 32};
  state.body = body;
  state.context = context;
  for (block_index.z = 0; block_index.z < grid.z; ++block_index.z)
    for (block_index.y = 0; block_index.y < grid.y; ++block_index.y)
      for (block_index.x = 0; block_index.x < grid.x; ++block_index.x)
        run_block(launch.reversed != 0);
}

} // namespace host
