#include "team.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tenth {
namespace {

// how long a waiting thread looks before it sleeps: the length of a small operation. A step is a chain of those;
// sleeping between two costs more than the wait, spinning for longer takes the core from others.
constexpr auto kLook = std::chrono::microseconds(100);
constexpr int kLooks = 32;  // between two looks at the clock

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  const auto end = std::chrono::steady_clock::now() + kLook;
  do {
    for (int i = 0; i < kLooks; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

// An operation whose memory cannot be had leaves its team in the middle of a loop: nobody could go on.
void run_or_end(const std::function<void(Team&)>& work, Team& team) {
  try {
    work(team);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tenth: a native operation cannot go on: %s\n", error.what());
    std::abort();
  }
}

void pin(int cpu) {
#if defined(__linux__)
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // refused: the thread runs where it may
#endif
}

}  // namespace

Buffer::~Buffer() { std::free(data_); }

void Buffer::grow(size_t bytes) {
  if (bytes <= size_) return;
  bytes += bytes / 4;
  std::free(data_);
  size_ = 0;
  constexpr size_t kPage = 4096, kLarge = 2 << 20;
  const size_t page = bytes < kLarge ? kPage : kLarge;
  bytes = (bytes + page - 1) / page * page;
  data_ = std::aligned_alloc(page, bytes);
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  if (page == kLarge) madvise(data_, bytes, MADV_HUGEPAGE);  // refused: small pages
#endif
  size_ = bytes;
}

void Team::barrier() {
  ++loop_;
  if (size == 1) {
    pool_.loops_[(loop_ + 1) % Pool::kLoops].value.store(0, std::memory_order_relaxed);
    return;
  }
  const uint32_t phase = pool_.phase_.load(std::memory_order_acquire);
  if (pool_.arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    pool_.arrived_.store(0, std::memory_order_relaxed);
    // the counter of the loop after the next: nobody can be there before all have passed here and once more
    pool_.loops_[(loop_ + 1) % Pool::kLoops].value.store(0, std::memory_order_relaxed);
    pool_.phase_.store(phase + 1, std::memory_order_release);
    pool_.phase_.notify_all();
  } else {
    wait_while(pool_.phase_, phase);
  }
}

int64_t Team::claim(int64_t count) {
  return pool_.loops_[loop_ % Pool::kLoops].value.fetch_add(count, std::memory_order_relaxed);
}

void* Team::shared(size_t bytes) {
  if (bytes > pool_.shared_.size()) {  // all see the same size: it changes between two barriers only
    barrier();
    if (id == 0) pool_.shared_.grow(bytes);
    barrier();
  }
  return pool_.shared_.data();
}

void* Team::local(size_t bytes) {
  pool_.local_[id]->grow(bytes);
  return pool_.local_[id]->data();
}

Pool::Pool(std::vector<int> cpus) : size_(cpus.empty() ? 1 : (int)cpus.size()) {
  for (int i = 0; i < size_; ++i) local_.push_back(std::make_unique<Buffer>());
  for (int i = 1; i < size_; ++i)
    threads_.emplace_back([this, i, cpu = cpus[i]] {
      pin(cpu);
      worker(i);
    });
}

Pool::Pool(int threads, Runtime runtime) : size_(threads), runtime_(runtime) {
  for (int i = 0; i < size_; ++i) local_.push_back(std::make_unique<Buffer>());
}

Pool::~Pool() {
  stop_ = true;
  start_.fetch_add(1);
  start_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Pool::worker(int id) {
  uint32_t seen = 0;
  for (;;) {
    wait_while(start_, seen);
    ++seen;
    if (stop_) return;
    Team team(*this, id, size_);
    run_or_end(*work_, team);
    team.barrier();
  }
}

void Pool::run_borrowed(const std::function<void(Team&)>& work) {
  struct Call {
    Pool* pool;
    const std::function<void(Team&)>* work;
  } call{this, &work};
  const auto enter = [](void* data) {
    const Call& call = *static_cast<Call*>(data);
    const Runtime& runtime = call.pool->runtime_;
    Team team(*call.pool, runtime.thread(), runtime.threads());
    run_or_end(*call.work, team);
  };
  runtime_.parallel(enter, &call, size_, 0);
}

void Pool::run(const std::function<void(Team&)>& work) {
  while (busy_.test_and_set(std::memory_order_acquire)) busy_.wait(true, std::memory_order_relaxed);
  for (auto& loop : loops_) loop.value.store(0, std::memory_order_relaxed);
  if (runtime_.parallel) {
    run_borrowed(work);
  } else {
    work_ = &work;
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    Team team(*this, 0, size_);
    run_or_end(work, team);
    team.barrier();
  }
  busy_.clear(std::memory_order_release);
  busy_.notify_one();
}

}  // namespace tenth
