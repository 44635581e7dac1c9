#include "expert_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <limits>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <tuple>

namespace tenth {
namespace {

constexpr int64_t kPage = ExpertStore::kPage;

int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// A file read around the page cache where its file system can; else pages are dropped as soon as they are read.
class File {
 public:
  File(const std::string& path, int64_t probe) : path_(path) {
#if defined(O_DIRECT)
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd_ >= 0 && !reads_directly(probe)) close(fd_), fd_ = -1;
    direct_ = fd_ >= 0;
    if (direct_) return;
#else
    (void)probe;
    errno = ENOSYS;
#endif
    why_ = path + ": its file system reads through the page cache only (" + std::strerror(errno) + ")";
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) throw std::runtime_error(path + ": cannot be opened: " + std::strerror(errno));
  }
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  const std::string& why_not_direct() const { return why_; }

  // `bytes` from `offset` on, and what is left of the last page; empty, or why it cannot be
  std::string read(int64_t offset, int64_t bytes, uint8_t* to) const {
    const int64_t all = whole_pages(bytes);
    for (int64_t at = 0; at < bytes;) {
      const ssize_t got = pread(fd_, to + at, all - at, offset + at);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return path_ + ": cannot be read at byte " + std::to_string(offset + at) + ": " + std::strerror(errno);
      if (got == 0 || (direct_ && got % kPage && at + got < bytes))
        return path_ + ": ends at byte " + std::to_string(size()) + ", an expert in it at byte " +
               std::to_string(offset + bytes) + ": the file has become shorter since it was opened";
      at += got;
    }
#if defined(POSIX_FADV_DONTNEED)
    if (!direct_) posix_fadvise(fd_, offset, all, POSIX_FADV_DONTNEED);
#endif
    return {};
  }

 private:
  int64_t size() const {
    struct stat now;
    return fstat(fd_, &now) ? -1 : (int64_t)now.st_size;
  }

  bool reads_directly(int64_t offset) const {  // some file systems take the flag and refuse the read
    void* page = std::aligned_alloc(kPage, kPage);
    if (!page) throw std::bad_alloc();
    const bool good = pread(fd_, page, kPage, offset) >= 0;
    const int why = errno;
    std::free(page);
    errno = why;
    return good;
  }

  std::string path_, why_;
  int fd_ = -1;
  bool direct_ = false;
};

// memory that is taken as it is written to, and given back at the end
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(data);
#if defined(MADV_HUGEPAGE)
    madvise(data, bytes, MADV_HUGEPAGE);  // refused: small pages
#endif
  }
  ~Pages() { munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

// An expert's uses count half after so many steps of its layer. Instead of halving old uses, new ones weigh more; the
// logarithm of such a sum needs no scaling back. bench/expert_policies.py chose it.
constexpr double kHalfLife = 16;
constexpr double kNever = -std::numeric_limits<double>::infinity();

double with_use(double uses, double now) {
  return uses == kNever ? now : std::max(uses, now) + std::log2(1 + std::exp2(-std::fabs(uses - now)));
}

struct Layer {
  std::unique_ptr<File> file;
  std::vector<Expert> inside;  // addresses counted from an expert's first byte
  std::vector<ExpertStore::Place> places;
  std::vector<Expert> table;
  std::vector<int> slot;       // of each expert; -1: none
  std::vector<double> uses;    // of each expert, as `with_use` adds them up
  std::vector<int64_t> asked;  // of each expert: steps that asked for it
  int64_t steps = 0;
  std::vector<char> expected;  // for its next step
  bool predicted = false;
};

enum class State { kEmpty, kWaiting, kReading, kThere, kFailed };

struct Slot {
  State state = State::kEmpty;
  int layer = -1, expert = -1;
  bool pinned = false;  // by the step
  uint64_t used = 0;    // when: by the clock
  int64_t step = 0;     // that used it last
};

struct Wish {
  int layer, expert;
};

}  // namespace

class ExpertStore::Store {
 public:
  Store(int slots, int64_t slot_bytes, int readers) : slot_bytes(slot_bytes), slots(slots), pages_(slots * slot_bytes) {
    for (int i = 0; i < readers; ++i) readers_.emplace_back([this] { reader(); });
  }
  ~Store() {
    {
      const std::lock_guard lock(mutex);
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : readers_) thread.join();
  }

  void begin(int layer, const int* experts, int count) {
    const std::lock_guard lock(mutex);
    ++counts.steps;
    wishes_.clear();  // what was not begun in time
    Layer& now = layers[layer];
    ++now.steps;
    layer_ = layer;
    experts_.assign(experts, experts + count);
    batch = {0, 0, false};
    order.clear();
    std::vector<int> late, misses;
    for (int i = 0; i < count; ++i) {
      const int slot = now.slot[experts[i]];
      counts.right += now.predicted && now.expected[experts[i]];
      now.uses[experts[i]] = with_use(now.uses[experts[i]], now.steps / kHalfLife);
      ++now.asked[experts[i]];
      if (slot < 0) {
        misses.push_back(i);
        continue;
      }
      pin(slot);
      (slots[slot].state == State::kThere ? order : late).push_back(i);
    }
    counts.hits += order.size(), counts.late += late.size(), counts.misses += misses.size();
    order.insert(order.end(), late.begin(), late.end());
    issued_ = (int)order.size();
    order.insert(order.end(), misses.begin(), misses.end());
    now.predicted = false;
    std::fill(now.expected.begin(), now.expected.end(), 0);
    issue();
  }

  void expect(int layer, const int64_t* experts, int64_t count) {
    const std::lock_guard lock(mutex);
    Layer& next = layers[layer];
    std::fill(next.expected.begin(), next.expected.end(), 0);
    for (int64_t i = 0; i < count; ++i) next.expected[experts[i]] = 1;
    next.predicted = true;
    for (int e = 0; e < (int)next.slot.size(); ++e) {
      if (!next.expected[e]) continue;
      ++counts.expected;
      if (next.slot[e] < 0) wishes_.push_back({layer, e});
    }
    work_.notify_all();
  }

  void seed(const std::vector<Seed>& seeds) {
    const double all = 1 / (1 - std::exp2(-1 / kHalfLife));  // what uses in every step add up to
    const std::lock_guard lock(mutex);
    for (const Seed& seed : seeds) {
      layers[seed.layer].uses[seed.expert] = std::log2(seed.rate * all);
      seeds_.push_back({seed.layer, seed.expert});
    }
    work_.notify_all();
  }

  void take() {
    std::unique_lock lock(mutex);
    for (int i = batch.begin; i < batch.end; ++i) slot_of(i).pinned = false;
    batch.begin = batch.end;
    if (batch.begin == (int)order.size()) return;
    issue();
    if (!arrived(batch.begin)) {
      const auto start = std::chrono::steady_clock::now();
      for (; !arrived(batch.begin); issue()) done_.wait(lock);
      counts.stalled += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    while (batch.end < issued_ && slot_of(batch.end).state == State::kThere) ++batch.end;
    if (batch.end == batch.begin) give_up();
  }

  std::string error;
  Counts counts;
  Batch batch{};
  std::vector<int> order;
  std::vector<Layer> layers;
  std::string indirect;
  const int64_t slot_bytes;
  std::vector<Slot> slots;
  mutable std::mutex mutex;

 private:
  int slot_number(int i) const { return layers[layer_].slot[experts_[order[i]]]; }
  Slot& slot_of(int i) { return slots[slot_number(i)]; }

  bool arrived(int i) {
    if (i >= issued_) return false;
    const State state = slot_of(i).state;
    return state == State::kThere || state == State::kFailed;
  }

  void pin(int slot) {
    slots[slot].pinned = true;
    slots[slot].used = ++clock_;
    slots[slot].step = counts.steps;
  }

  // give slots to as many of the step's missing experts as there are to be had
  void issue() {
    const int before = issued_;
    for (; issued_ < (int)order.size(); ++issued_) {
      const int slot = victim();
      if (slot < 0) break;
      place(slot, layer_, experts_[order[issued_]], State::kWaiting);
      pin(slot);
      demanded_.push_back(slot);
    }
    if (issued_ > before) work_.notify_all();
  }

  // The slot whose expert goes: the one that is used least, of equal ones the one that was not used for longer. Those
  // that are expected come behind it, last (in the order in which they were handed out) those of the step that it is done
  // with. Never one that the step still needs, or a reader writes to. -1: there is none
  int victim(bool ahead = false) const {
    int found = -1;
    std::tuple<int, double, uint64_t> least;
    for (int i = 0; i < (int)slots.size(); ++i) {
      const Slot& slot = slots[i];
      if (slot.state == State::kEmpty) return i;
      if (slot.pinned || slot.state != State::kThere) continue;
      const Layer& layer = layers[slot.layer];
      const int group = slot.step == counts.steps ? 2 : layer.expected[slot.expert];
      if (ahead && group) continue;
      const std::tuple now{group, group == 2 ? 0.0 : layer.uses[slot.expert], slot.used};
      if (found < 0 || now < least) found = i, least = now;
    }
    return found;
  }

  void place(int slot, int layer, int expert, State state) {
    empty(slot);
    slots[slot] = {state, layer, expert, false, 0, 0};
    Layer& of = layers[layer];
    of.slot[expert] = slot;
    const uint8_t* data = pages_.data() + slot * slot_bytes;
    const Expert& inside = of.inside[expert];
    Expert& now = of.table[expert];
    now.gate.data = data + (uintptr_t)inside.gate.data;
    now.up.data = data + (uintptr_t)inside.up.data;
    now.down.data = data + (uintptr_t)inside.down.data;
  }

  void empty(int slot) {
    if (slots[slot].state != State::kEmpty) layers[slots[slot].layer].slot[slots[slot].expert] = -1;
    slots[slot] = {};
  }

  void give_up() {
    error = failure_;
    batch.failed = true;
    demanded_.clear();
    wishes_.clear();
    for (int i = batch.begin; i < issued_; ++i) {
      const int slot = slot_number(i);
      slots[slot].pinned = false;
      if (slots[slot].state == State::kWaiting || slots[slot].state == State::kFailed) empty(slot);
    }
  }

  // the slot of the next read; -1: nothing to do
  int next_read() {
    if (!demanded_.empty()) {
      const int slot = demanded_.front();
      demanded_.pop_front();
      ++reading_;
      return slot;
    }
    if (reading_) return -1;
    const int expected = next_wish(wishes_, true);
    counts.ahead += expected >= 0;
    return expected >= 0 ? expected : next_wish(seeds_, false);
  }

  // a slot for the first that is not there; in place of another expert, or only where there was none
  int next_wish(std::deque<Wish>& wishes, bool in_place) {
    while (!wishes.empty()) {
      const Wish wish = wishes.front();
      wishes.pop_front();
      if (layers[wish.layer].slot[wish.expert] >= 0) continue;
      const int slot = victim(true);
      if (slot < 0 || (!in_place && slots[slot].state != State::kEmpty)) {
        wishes.clear();
        break;
      }
      place(slot, wish.layer, wish.expert, State::kReading);
      slots[slot].used = ++clock_;
      return slot;
    }
    return -1;
  }

  void reader() {
    std::unique_lock lock(mutex);
    for (;;) {
      int slot = -1;
      work_.wait(lock, [&] { return stop_ || (slot = next_read()) >= 0; });
      if (stop_) return;
      slots[slot].state = State::kReading;
      const Layer& layer = layers[slots[slot].layer];
      const Place& place = layer.places[slots[slot].expert];
      const bool demanded = slots[slot].pinned;
      uint8_t* to = pages_.data() + slot * slot_bytes;
      lock.unlock();
      std::string failed = layer.file->read(place.offset, place.bytes, to);
      lock.lock();
      if (failed.empty()) ++counts.reads, counts.bytes += whole_pages(place.bytes);
      finish(slot, std::move(failed));
      if (demanded && !--reading_ && !(wishes_.empty() && seeds_.empty())) work_.notify_all();
    }
  }

  void finish(int slot, std::string failed) {
    slots[slot].state = State::kThere;
    if (!failed.empty()) {
      if (slots[slot].pinned) {
        slots[slot].state = State::kFailed;
        failure_ = std::move(failed);
      } else {
        empty(slot);  // who needs it will find out again
      }
    }
    done_.notify_all();
  }

  Pages pages_;
  int layer_ = 0, issued_ = 0;  // of the step: its layer, and how many of its experts have a slot
  std::vector<int> experts_;
  uint64_t clock_ = 0;
  std::deque<int> demanded_;  // slots
  int reading_ = 0;           // of those, how many are being read
  std::deque<Wish> wishes_, seeds_;
  std::string failure_;
  std::condition_variable work_, done_;
  bool stop_ = false;
  std::vector<std::thread> readers_;
};

ExpertStore::ExpertStore(int slots, int64_t slot_bytes, int readers)
    : store_(std::make_unique<Store>(slots, slot_bytes, readers)) {}
ExpertStore::~ExpertStore() = default;

int ExpertStore::add_layer(const std::string& path, std::vector<Expert> experts, std::vector<Place> places) {
  Layer layer;
  layer.file = std::make_unique<File>(path, places[0].offset);
  if (store_->indirect.empty()) store_->indirect = layer.file->why_not_direct();
  layer.table = experts;
  layer.inside = std::move(experts);
  layer.places = std::move(places);
  layer.slot.assign(layer.table.size(), -1);
  layer.uses.assign(layer.table.size(), kNever);
  layer.asked.assign(layer.table.size(), 0);
  layer.expected.assign(layer.table.size(), 0);
  store_->layers.push_back(std::move(layer));
  return (int)store_->layers.size() - 1;
}

void ExpertStore::read(int layer, int expert, uint8_t* to) const {
  const Layer& of = store_->layers[layer];
  const std::string failed = of.file->read(of.places[expert].offset, of.places[expert].bytes, to);
  if (!failed.empty()) throw std::runtime_error(failed);
}

ExpertStore::Counts ExpertStore::counts() const {
  const std::lock_guard lock(store_->mutex);
  return store_->counts;
}

void ExpertStore::seed(const std::vector<Seed>& seeds) { store_->seed(seeds); }

int64_t ExpertStore::steps(int layer) const {
  const std::lock_guard lock(store_->mutex);
  return store_->layers[layer].steps;
}

std::vector<int64_t> ExpertStore::uses(int layer) const {
  const std::lock_guard lock(store_->mutex);
  return store_->layers[layer].asked;
}

const std::string& ExpertStore::indirect() const { return store_->indirect; }
int ExpertStore::slots() const { return (int)store_->slots.size(); }
int64_t ExpertStore::slot_bytes() const { return store_->slot_bytes; }
int ExpertStore::experts(int layer) const { return (int)store_->layers[layer].table.size(); }
const Expert* ExpertStore::table(int layer) const { return store_->layers[layer].table.data(); }
void ExpertStore::begin(int layer, const int* experts, int count) { store_->begin(layer, experts, count); }
void ExpertStore::expect(int layer, const int64_t* experts, int64_t count) { store_->expect(layer, experts, count); }
void ExpertStore::take() { store_->take(); }
const ExpertStore::Batch& ExpertStore::batch() const { return store_->batch; }
const int* ExpertStore::order() const { return store_->order.data(); }
const std::string& ExpertStore::error() const { return store_->error; }

}  // namespace tenth
