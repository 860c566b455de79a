/* The operators of the domain `dragoman`, for ONNX Runtime on CPUs, with the kernels that are best for this one. */

#include "operators.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

OrtTable ort;
Kernels kernels;

#define DECLARE(variant)                                           \
  void attend_##variant(const Attention *, size_t, size_t);        \
  void norm_##variant(const Norm *, size_t, size_t);               \
  void activate_##variant(const Activate *, size_t, size_t);       \
  void list_product_##variant(const ListProduct *, size_t, size_t); \
  void find_best_##variant(const Best *, size_t, size_t);          \
  void log_probs_##variant(const LogProbs *, size_t, size_t);
#define KERNELS(variant)                                                                                \
  (Kernels) {                                                                                           \
    .attend = attend_##variant, .norm = norm_##variant, .activate = activate_##variant,                 \
    .list_product = list_product_##variant, .find_best = find_best_##variant,                           \
    .log_probs = log_probs_##variant                                                                    \
  }

#if defined(__x86_64__)
DECLARE(sse2)
DECLARE(avx2)
DECLARE(avx512)
DECLARE(vnni)
void int8_product_avx2(const Int8Product *, size_t, size_t);
void int8_product_vnni(const Int8Product *, size_t, size_t);
void int8_product_amx(const Int8Product *, size_t, size_t);

/* Processors with more have all of those before. */
enum Level { SSE2, AVX2, AVX512, VNNI, AMX };

/* The registers that the system saves for a process when it lets another one run: XCR0. */
static unsigned saved_registers(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static bool has_all(unsigned found, unsigned wanted) { return (found & wanted) == wanted; }

/* Asked of the processor itself: with Zig, __builtin_cpu_supports knows of nothing. The numbers are Intel's. */
static enum Level level_of_processor(void) {
  const unsigned xsave_and_fma = 1u << 27 | 1u << 28 | 1u << 12, avx2 = 1u << 5;
  const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
  const unsigned vnni = 1u << 11, amx = 1u << 24 | 1u << 25;         /* of 512 bits; tiles, and their int8 */
  const unsigned of_avx = 6, of_avx512 = 0xe6, of_tiles = 0x600e6;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has_all(c, xsave_and_fma)) return SSE2;
  unsigned saved = saved_registers();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has_all(b, avx2) || !has_all(saved, of_avx)) return SSE2;
  if (!has_all(b, avx512) || !has_all(saved, of_avx512)) return AVX2;
  if (!has_all(c, vnni)) return AVX512;
  return has_all(d, amx) && has_all(saved, of_tiles) ? AMX : VNNI;
}

/* Whether Linux lets this process have tiles: it has to be asked. */
static bool may_use_tiles(void) {
#if defined(__linux__)
  const int request_permission = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

PUBLIC const char *kernel_variant(void) {
  const char *names[] = {"sse2", "avx2", "avx512", "vnni", "vnni"};
  return names[level_of_processor()];
}

PUBLIC const char *int8_product_variant(void) {
  enum Level level = level_of_processor();
  if (level < AVX2) return NULL;
  if (level < VNNI) return "avx2";
  return level == AMX && may_use_tiles() ? "amx" : "vnni";
}

static void take_int8_product(Kernels *found, FindInt8Product product, size_t panel, size_t step) {
  found->int8_product = product, found->int8_panel = panel, found->int8_step = step;
}

static Kernels best_kernels(void) {
  enum Level level = level_of_processor();
  if (level == SSE2) return KERNELS(sse2);
  Kernels found = level == AVX2 ? KERNELS(avx2) : level == AVX512 ? KERNELS(avx512) : KERNELS(vnni);
  if (level < VNNI)
    take_int8_product(&found, int8_product_avx2, INT8_PANEL_AVX2, INT8_STEP_AVX2);
  else if (level == AMX && may_use_tiles())
    take_int8_product(&found, int8_product_amx, INT8_PANEL_VNNI, INT8_STEP_VNNI);
  else
    take_int8_product(&found, int8_product_vnni, INT8_PANEL_VNNI, INT8_STEP_VNNI);
  return found;
}
#else
DECLARE(base)

PUBLIC const char *kernel_variant(void) { return "base"; }
PUBLIC const char *int8_product_variant(void) { return NULL; }

static Kernels best_kernels(void) { return KERNELS(base); }
#endif

static OrtStatus *add_all(OrtDomain *domain, Operators operators) {
  for (size_t i = 0; i < operators.count; i++) TRY(ort_add_operator(domain, &operators.first[i]));
  return NULL;
}

/* ONNX Runtime calls this by its name for each session that uses the library; the domain serves all of them. */
PUBLIC OrtStatus *RegisterCustomOps(OrtOptions *options, const OrtBase *base) {
  static OrtDomain *domain;
  if (domain == NULL) {
    ort = base->table(ORT_VERSION);
    kernels = best_kernels();
    OrtDomain *created;
    TRY(ort_create_domain("dragoman", &created));
    TRY(add_all(created, attention_operators()));
    TRY(add_all(created, product_operators()));
    TRY(add_all(created, search_operators()));
    domain = created;
  }
  return ort_add_domain(options, domain);
}
