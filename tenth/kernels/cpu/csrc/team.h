// The threads that work on one step together, and the little they need from each other.
//
// An operation is a function that every thread of the team calls with the same arguments. Inside, `claim` hands out
// pieces of work in order, `barrier` waits for all, `shared` and `local` lend memory. Which thread takes which piece
// is left to chance; what a piece computes does not depend on it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace tenth {

// memory that grows and is never given back before the end, aligned to cache lines
class Buffer {
 public:
  ~Buffer();
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  size_t size() const { return size_; }
  void* data() const { return data_; }
  void grow(size_t bytes);  // contents are lost; std::bad_alloc

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

class Pool;

class Team {
 public:
  const int id, size;

  void barrier();
  // the next `count` pieces of the current loop: the first of them (>= total: none left). All threads call it until
  // then, and `barrier` ends the loop.
  int64_t claim(int64_t count);
  void* shared(size_t bytes);  // the same memory for all threads, until the next operation; all must call it
  void* local(size_t bytes);   // this thread's own, until its next call

 private:
  friend class Pool;
  Team(Pool& pool, int id, int size) : id(id), size(size), pool_(pool) {}
  Pool& pool_;
  uint32_t loop_ = 0;
};

// Threads of an OpenMP runtime that is in the process already, by its functions: GOMP_parallel, omp_get_thread_num,
// omp_get_num_threads. Where another library computes on them in turn, its waiting threads and ours would else spin on the
// same cores.
struct Runtime {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread)();
  int (*threads)();
};

class Pool {
 public:
  Pool(int threads, Runtime runtime);  // so many of the runtime's threads, or fewer where it has fewer
  explicit Pool(std::vector<int> cpus);  // one thread for each (the caller is the first), pinned unless negative; empty: one
  ~Pool();
  int size() const { return size_; }
  // every thread calls work(team); returns when all have. Calls from several threads queue up.
  void run(const std::function<void(Team&)>& work);

 private:
  friend class Team;
  static constexpr int kLoops = 4;
  struct alignas(64) Counter { std::atomic<int64_t> value{0}; };

  void worker(int id);
  void run_borrowed(const std::function<void(Team&)>& work);

  int size_;
  Runtime runtime_{};
  Counter loops_[kLoops];
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<uint32_t> start_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(Team&)>* work_ = nullptr;
  std::vector<std::unique_ptr<Buffer>> local_;
  Buffer shared_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::vector<std::thread> threads_;
};

}  // namespace tenth
