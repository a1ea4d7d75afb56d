// Accounting of the heap memory that an execution takes: it counts against the execution's account, as the
// workspace does (device/workspace.h).
//
// ONNX Runtime takes tensors from the allocator that it is given, and everything else from operator new: the
// characters of strings, results of NonZero and Unique before their size is known, an operator's own vectors.
// The obvious place to count them, an operator new of this library, is never called: the runtime is loaded
// before or beside it, and binds to libstdc++'s. So the entries through which libstdc++ calls malloc() and
// free(), and libjpeg's entries, are replaced by functions that count, on a thread that executes and only
// while it does. Beyond the limit the execution is told to end between two nodes. A little later it gets no
// more memory: operator new throws std::bad_alloc, which the runtime catches around every kernel.
#pragma once

namespace clockwork::device {

// Counts the memory that a library takes from now on, in the whole process. library: a part of its path, such
// as "/libstdc++.so". Returns false if it is not loaded, or calls malloc() in another way.
bool count_heap(const char* library);

// Whether operator new is counted in this process, after count_heap() of libstdc++. It is not counted where a
// library with an operator new of its own was preloaded (LD_PRELOAD): jemalloc, tcmalloc.
bool counts_operator_new();

}  // namespace clockwork::device
