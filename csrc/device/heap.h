// The heap that an execution takes, which counts against its account as the workspace does (device/workspace.h).
//
// ONNX Runtime takes tensors from the allocator that it is given, and all else from operator new: the characters of
// strings, what NonZero and Unique find before they know how much it is, an operator's own vectors. The obvious place to
// count it, an operator new of this library, is not called: the runtime is loaded before or beside it, and binds to
// libstdc++'s. So the entries by which libstdc++ calls malloc() and free(), and libjpeg's likewise, are set to functions
// that count on a thread that executes, and while it does. Beyond the limit the execution is told to end between two
// nodes, and a little later it gets no more memory: operator new throws std::bad_alloc, which the runtime catches around
// every kernel.
#pragma once

namespace clockwork::device {

// Counts from now on what a library takes, in all of this process. library: a part of its path, such as "/libstdc++.so".
// False: it is not loaded, or calls malloc() in another way.
bool count_heap(const char* library);

// Whether what this process takes by operator new is counted, after count_heap() of libstdc++. It is not where a library
// with an operator new of its own was loaded before all others (LD_PRELOAD): jemalloc, tcmalloc.
bool counts_operator_new();

}  // namespace clockwork::device
