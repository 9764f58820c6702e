// Items of work for the threads of a parallel region.
#pragma once

#include <cstdint>

namespace latentkv::LATENTKV_ISA {

// Every thread takes the items of its own stretch in order, so that what it reads of memory goes on from one to the next, and
// then what is left of the others': cores are seldom equally fast.
class Shares {
 public:
  // memory: bytes(threads), aligned to 64. Made before the parallel region, which may have fewer threads in the end.
  Shares(char* memory, std::int64_t items, int threads) : memory_(memory), items_(items), threads_(threads) {
    for (int thread = 0; thread < threads; ++thread) *next(thread) = first(thread);
  }

  // A cache line each.
  static std::int64_t bytes(int threads) { return threads * kLine; }

  // body(item) for all items of this thread.
  template <typename Body>
  void run(int thread, Body body) const {
    for (int i = 0; i < threads_; ++i) {
      const int owner = (thread + i) % threads_;
      for (std::int64_t item = take(owner); item < first(owner + 1); item = take(owner)) body(item);
    }
  }

 private:
  static constexpr std::int64_t kLine = 64;

  std::int64_t first(int thread) const { return items_ * thread / threads_; }
  std::int64_t* next(int thread) const { return reinterpret_cast<std::int64_t*>(memory_ + thread * kLine); }
  std::int64_t take(int owner) const { return __atomic_fetch_add(next(owner), 1, __ATOMIC_RELAXED); }

  char* memory_;
  std::int64_t items_;
  int threads_;
};

}  // namespace latentkv::LATENTKV_ISA
