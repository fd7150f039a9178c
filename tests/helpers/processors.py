"""Lesser processors than this one: name -> what LLVM may use of it."""

PROCESSORS = {
    "haswell": "+sse4.2,+popcnt,+lzcnt,+bmi,+bmi2,+avx,+avx2,-avx512f",
    "nehalem": "+sse4.2,+popcnt,-avx,-avx2,-avx512f",
}
