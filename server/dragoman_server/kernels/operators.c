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
void int8_product_vnni(const Int8Product *, size_t, size_t);
void int8_product_amx(const Int8Product *, size_t, size_t);

static bool has_avx512(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* Tiles (AMX) are in the registers of a process that Linux has allowed to have them. */
static bool may_use_tiles(void) {
  const unsigned amx_tile = 1u << 24, amx_int8 = 1u << 25;
  const int request_permission = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
  unsigned a, b, c, d = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  if (!(d & amx_tile) || !(d & amx_int8)) return false;
#if defined(__linux__)
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

PUBLIC const char *int8_product_variant(void) {
  if (!has_avx512() || !__builtin_cpu_supports("avx512vnni")) return NULL;
  return may_use_tiles() ? "amx" : "vnni";
}

static Kernels best_kernels(void) {
  const char *variant = int8_product_variant();
  if (variant != NULL) {
    Kernels found = KERNELS(vnni);
    found.int8_product = strcmp(variant, "amx") == 0 ? int8_product_amx : int8_product_vnni;
    return found;
  }
  if (has_avx512()) return KERNELS(avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return KERNELS(avx2);
  return KERNELS(sse2);
}
#else
DECLARE(base)

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
