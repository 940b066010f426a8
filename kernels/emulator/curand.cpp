// libcurand.so.10 for a machine without a GPU. candle makes a generator with each device; nothing draws from it.
extern "C" {
enum { success = 0, not_supported = 1000 };

int curandCreateGenerator(void **generator, int) {
  static int only;
  *generator = &only;
  return success;
}
int curandDestroyGenerator(void *) { return success; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return success; }
int curandSetStream(void *, void *) { return success; }
int curandGenerateNormal(void *, float *, unsigned long, float, float) { return not_supported; }
int curandGenerateNormalDouble(void *, double *, unsigned long, double, double) { return not_supported; }
int curandGenerateUniform(void *, float *, unsigned long) { return not_supported; }
int curandGenerateUniformDouble(void *, double *, unsigned long) { return not_supported; }
}
