#include "sets.h"

#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tenth {

const Ops* ops_amx();
const Ops* ops_avx512();
const Ops* ops_avxvnni();
const Ops* ops_avx2();
const Ops* ops_portable();

namespace {

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16");
}

// AMX needs the system's leave as well: it is asked for once, for all threads that come after
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBfloat16 | kTile | kInt8;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

std::vector<std::pair<std::string, const Ops*>> sets() {
  std::vector<std::pair<std::string, const Ops*>> found;
  auto add = [&](const Ops* ops) { found.emplace_back(ops->name, ops); };
#if defined(TENTH_HAVE_AMX)
  if (has_avx512() && has_amx()) add(ops_amx());
#endif
#if defined(TENTH_HAVE_AVX512)
  if (has_avx512()) add(ops_avx512());
#endif
#if defined(TENTH_HAVE_AVXVNNI)
  if (has_avx2() && __builtin_cpu_supports("avxvnni")) add(ops_avxvnni());
#endif
#if defined(TENTH_HAVE_AVX2)
  if (has_avx2()) add(ops_avx2());
#endif
  add(ops_portable());
  return found;
}

}  // namespace

std::vector<std::string> supported_sets() {
  std::vector<std::string> names;
  for (const auto& [name, ops] : sets()) names.push_back(name);
  return names;
}

const Ops* ops_of(const std::string& name) {
  for (const auto& [set, ops] : sets())
    if (set == name) return ops;
  throw std::invalid_argument("instruction set " + name + " is not one this processor and this build have");
}

}  // namespace tenth
