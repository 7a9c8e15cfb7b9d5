// Run-time dispatch of hot loops: the compiler emits one clone a level and the loader picks the
// best at start.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define MOE_EP_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MOE_EP_CLONES
#endif
