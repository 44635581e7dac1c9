// Experts that stay on disk, and the memory of a fixed size in which some of them lie.
//
// The memory is cut into slots of one expert each, whichever layer it is of. A step of a layer names the experts that it
// needs (`begin`); those that lie in a slot are pinned there, the others are read by threads of their own, around the
// system's page cache. `take` hands them out as they come: first those that were there, then the others in order. Where
// there are fewer slots than experts, those that were computed with give theirs to the next. What the router of the next
// layer will probably choose (`expect`) is read while no step waits for a read.
//
// Slots that nothing has asked for yet are filled with experts that were used before (`seed`), while nothing else is read.
//
// One step at a time, and `begin`, `expect`, `take` by one thread: a team of threads takes turns on its pool, and
// barriers stand between these calls and who looks at `order`, `batch` and the table. Nothing here is inline: code
// of one instruction set must not be linked into another's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "matrix.h"

namespace tenth {

class ExpertStore {
 public:
  static constexpr int64_t kPage = 4096;  // experts begin at multiples of this in their file, slots in memory

  struct Place {  // of an expert in its layer's file
    int64_t offset, bytes;
  };
  struct Batch {  // of the step's order: experts that are there now
    int begin, end;
    bool failed;  // a file could not be read: `error` says why, the step is over
  };
  struct Counts {
    int64_t steps = 0;      // of a layer
    int64_t hits = 0;       // experts of those that were there when they were asked for
    int64_t late = 0;       // that were expected and still on their way
    int64_t misses = 0;     // that had to be read
    int64_t expected = 0;   // experts that were predicted for a step
    int64_t right = 0;      // of them, those that the step needed
    int64_t ahead = 0;      // reads of expected experts
    int64_t reads = 0, bytes = 0;  // all of them
    double stalled = 0;     // seconds that steps waited for reads
  };

  // slots of `slot_bytes` each, a multiple of kPage; so many reads at a time. std::bad_alloc
  ExpertStore(int slots, int64_t slot_bytes, int readers);
  ~ExpertStore();
  ExpertStore(const ExpertStore&) = delete;

  // The next layer's experts, their matrices' addresses counted from the expert's first byte. std::runtime_error names a
  // file that cannot be opened.
  int add_layer(const std::string& path, std::vector<Expert> experts, std::vector<Place> places);
  // why some file's reads go through the page cache, from which they are dropped at once; empty: none does
  const std::string& indirect() const;

  int slots() const;
  int64_t slot_bytes() const;
  Counts counts() const;
  // an expert's bytes at an address that kPage divides, with room for whole pages; std::runtime_error
  void read(int layer, int expert, uint8_t* to) const;

  struct Seed {
    int layer, expert;
    double rate;  // of its layer's steps, the share that used it
  };
  // Experts as if they had been used at such rates; into slots that are empty they are read at once, in this order.
  void seed(const std::vector<Seed>& seeds);
  int64_t steps(int layer) const;              // that asked for experts of it
  std::vector<int64_t> uses(int layer) const;  // of its experts: steps that asked for each

  int experts(int layer) const;
  const Expert* table(int layer) const;  // addresses are those of the slots while an expert is in a batch
  void begin(int layer, const int* experts, int count);  // distinct ones
  void expect(int layer, const int64_t* experts, int64_t count);  // may name one several times
  void take();  // the batch before is done; waits for the next
  const Batch& batch() const;
  const int* order() const;  // the step's experts as they are handed out: indices into what `begin` was told
  const std::string& error() const;

 private:
  class Store;
  std::unique_ptr<Store> store_;
};

}  // namespace tenth
