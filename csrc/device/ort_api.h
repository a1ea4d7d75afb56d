/* The entries of ONNX Runtime's C API that Clockwork calls.
 *
 * The runtime hands out one table of function pointers that is only ever appended to: an entry keeps
 * its place for good. The wheel carries no header, so each entry used is declared here by its place,
 * with the signature it had when it was added. ORT_API_VERSION is the lowest version of the table
 * that has all of them, and the table's answers are checked once, before first use, by running a
 * model whose result is known (clockwork/device/_ort.pyx).
 *
 * Every function that returns an OrtStatus returns NULL on success; ort_failed() consumes it.
 */
#ifndef CLOCKWORK_ORT_API_H
#define CLOCKWORK_ORT_API_H

#include <ctype.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { ORT_API_VERSION = 15, ORT_ENTRY_COUNT = 253 };
enum { ORT_INVALID_ARGUMENT = 2, ORT_INT64 = 7, ORT_UINT8 = 2 };

enum { ORT_LOG_FATAL = 4, ORT_OPTIMIZE_NOTHING = 0, ORT_TYPE_TENSOR = 1, ORT_STRING = 8 };
enum { ORT_DEVICE_ALLOCATOR = 0, ORT_MEMORY_DEFAULT = 0 };

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorInfo OrtTensorInfo; /* OrtTensorTypeAndShapeInfo */
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;

typedef struct OrtApi {
    void* entry[ORT_ENTRY_COUNT];
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi* (*GetApi)(uint32_t version); /* NULL if the library has no such version */
    const char* (*GetVersionString)(void);
} OrtApiBase;

/* An allocator as the runtime sees it. Later members are read only if version says they are there. */
typedef struct OrtAllocator {
    uint32_t version;
    void* (*Alloc)(struct OrtAllocator* self, size_t bytes);
    void (*Free)(struct OrtAllocator* self, void* pointer);
    const OrtMemoryInfo* (*Info)(const struct OrtAllocator* self);
} OrtAllocator;

/* The runtime numbers element types as ONNX does, except for three that it added in another order. */
static inline int ort_dtype_of_onnx(int dtype) {
    return dtype == 24 ? 26 : dtype == 25 || dtype == 26 ? dtype - 1 : dtype;
}

static inline int onnx_dtype_of_ort(int dtype) {
    return dtype == 26 ? 24 : dtype == 24 || dtype == 25 ? dtype + 1 : dtype;
}

#define ORT_CALL(api, place, ...) ((OrtStatus * (*)(__VA_ARGS__))(api)->entry[place])
#define ORT_RELEASE(name, place, type)                         \
    static inline void name(const OrtApi* api, type* object) { \
        if (object)                                            \
            ((void (*)(type*))(api)->entry[place])(object);    \
    }

ORT_RELEASE(ort_release_env, 92, OrtEnv)
ORT_RELEASE(ort_release_status, 93, OrtStatus)
ORT_RELEASE(ort_release_memory_info, 94, OrtMemoryInfo)
ORT_RELEASE(ort_release_session, 95, OrtSession)
ORT_RELEASE(ort_release_value, 96, OrtValue)
ORT_RELEASE(ort_release_run_options, 97, OrtRunOptions)
ORT_RELEASE(ort_release_type_info, 98, OrtTypeInfo)
ORT_RELEASE(ort_release_tensor_info, 99, OrtTensorInfo)
ORT_RELEASE(ort_release_session_options, 100, OrtSessionOptions)

/* The end of a place in ONNX Runtime's source, "/path/file.cc:12 " or "file.cc:12 ", at its first character.
 * NULL: it is none. */
static inline const char* ort_place_end(const char* place) {
    static const char* const KINDS[] = {".cc", ".cpp", ".h", ".cu", ".cuh"};
    const char* end = place + strcspn(place, " \t\n\v\f\r");
    const char* colon = end;
    size_t kind, size;
    if (*end != ' ')
        return NULL;
    while (colon > place && colon[-1] >= '0' && colon[-1] <= '9')
        colon--;
    if (colon == end || colon == place || *--colon != ':')
        return NULL;
    for (kind = 0; kind < sizeof KINDS / sizeof *KINDS; kind++) {
        size = strlen(KINDS[kind]);
        if ((size_t)(colon - place) > size + 1 && memcmp(colon - size, KINDS[kind], size) == 0)
            return end + 1;
    }
    return NULL;
}

/* The end of the signature of a function, "void onnxruntime::Class::name(int) const [with T = int] ", which
 * may be longer than the cause that follows it. Returns the text itself if it begins with no signature. */
static inline const char* ort_signature_end(const char* text) {
    const char* at = text + strcspn(text, "()");
    const char* scope = strstr(text, "::");
    int depth = 0;
    if (!scope || scope + 2 > at)
        return text;
    for (; *at; at++) {
        depth += (*at == '(') - (*at == ')');
        if (depth == 0)
            break;
    }
    if (!*at++)
        return text;
    for (;;) {
        if (strncmp(at, "::", 2) == 0 && strcspn(at + 2, " \t\n\v\f\r") != 0)
            at += 2 + strcspn(at + 2, " \t\n\v\f\r");
        else if (strncmp(at, " const", 6) == 0 && !isalnum((unsigned char)at[6]) && at[6] != '_')
            at += 6;
        else if (strncmp(at, " noexcept", 9) == 0 && !isalnum((unsigned char)at[9]) && at[9] != '_')
            at += 9;
        else if (strncmp(at, " [with ", 7) == 0 && strchr(at, ']'))
            at = strchr(at, ']') + 1;
        else
            break;
    }
    return at + strspn(at, " \t\n\v\f\r");
}

/* The end of the name of a function, "Compute " or "operator() ", which follows a place without a path.
 * Returns the text itself if it begins with no name. */
static inline const char* ort_name_end(const char* text) {
    const char* at = text;
    while (isalnum((unsigned char)*at) || *at == '_')
        at++;
    if (strncmp(text, "operator()", 10) == 0)
        at = text + 10;
    return at > text && *at == ' ' ? at + strspn(at, " \t\n\v\f\r") : text;
}

/* Copies ONNX Runtime's message, cut to bytes, without the places in its source (path, line and signature or
 * name of a function) and without white space at its end. Where no cause follows a place, the place stays. */
static inline void ort_say(const char* message, char* text, size_t bytes) {
    const char* at = message;
    size_t done = 0;
    while (*at && done + 1 < bytes) {
        const int is_path = *at == '/', is_word = isalnum((unsigned char)*at) && (at == message || at[-1] == ' ');
        const char* end = is_path || is_word ? ort_place_end(at) : NULL;
        const char* cause = end == NULL ? NULL : is_path ? ort_signature_end(end) : ort_name_end(end);
        if (cause == NULL || *cause == 0 || (is_word && cause == end))
            text[done++] = *at++;
        else
            at = cause;
    }
    while (done > 0 && isspace((unsigned char)text[done - 1]))
        done--;
    text[done] = 0;
}

/* 1 and the message in text (cut to bytes) if the call failed, else 0. Releases the status. */
static inline int ort_failed(const OrtApi* api, OrtStatus* status, char* text, size_t bytes) {
    if (!status)
        return 0;
    ort_say(((const char* (*)(const OrtStatus*))api->entry[2])(status), text, bytes);
    ort_release_status(api, status);
    return 1;
}

/* Makes a status; the message is copied. */
static inline OrtStatus* ort_create_status(const OrtApi* api, int code, const char* text) {
    return ORT_CALL(api, 0, int, const char*)(code, text);
}

static inline OrtStatus* ort_create_env(const OrtApi* api, int log_level, const char* name, OrtEnv** out) {
    return ORT_CALL(api, 3, int, const char*, OrtEnv**)(log_level, name, out);
}

static inline OrtStatus* ort_create_session(const OrtApi* api, const OrtEnv* env, const char* path,
                                            const OrtSessionOptions* options, OrtSession** out) {
    return ORT_CALL(api, 7, const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**)(env, path, options,
                                                                                                out);
}

/* The model's bytes are copied: the caller may free them afterwards. */
static inline OrtStatus* ort_create_session_from_array(const OrtApi* api, const OrtEnv* env, const void* model,
                                                       size_t bytes, const OrtSessionOptions* options,
                                                       OrtSession** out) {
    return ORT_CALL(api, 8, const OrtEnv*, const void*, size_t, const OrtSessionOptions*, OrtSession**)(
        env, model, bytes, options, out);
}

/* Outputs that are NULL are allocated by the runtime; the caller releases them. */
static inline OrtStatus* ort_run(const OrtApi* api, OrtSession* session, const OrtRunOptions* options,
                                 const char* const* input_names, const OrtValue* const* inputs, size_t input_count,
                                 const char* const* output_names, size_t output_count, OrtValue** outputs) {
    return ORT_CALL(api, 9, OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,
                    const char* const*, size_t, OrtValue**)(session, options, input_names, inputs, input_count,
                                                            output_names, output_count, outputs);
}

static inline OrtStatus* ort_create_session_options(const OrtApi* api, OrtSessionOptions** out) {
    return ORT_CALL(api, 10, OrtSessionOptions**)(out);
}

static inline OrtStatus* ort_disable_memory_pattern(const OrtApi* api, OrtSessionOptions* options) {
    return ORT_CALL(api, 17, OrtSessionOptions*)(options);
}

static inline OrtStatus* ort_set_optimization(const OrtApi* api, OrtSessionOptions* options, int level) {
    return ORT_CALL(api, 23, OrtSessionOptions*, int)(options, level);
}

static inline OrtStatus* ort_set_intra_threads(const OrtApi* api, OrtSessionOptions* options, int count) {
    return ORT_CALL(api, 24, OrtSessionOptions*, int)(options, count);
}

static inline OrtStatus* ort_set_inter_threads(const OrtApi* api, OrtSessionOptions* options, int count) {
    return ORT_CALL(api, 25, OrtSessionOptions*, int)(options, count);
}

/* Operators belong to a domain, and the domain to options of sessions; both must outlive the sessions. */
static inline OrtStatus* ort_create_domain(const OrtApi* api, const char* name, OrtCustomOpDomain** out) {
    return ORT_CALL(api, 26, const char*, OrtCustomOpDomain**)(name, out);
}

static inline OrtStatus* ort_add_operator(const OrtApi* api, OrtCustomOpDomain* domain, const struct OrtCustomOp* op) {
    return ORT_CALL(api, 27, OrtCustomOpDomain*, const struct OrtCustomOp*)(domain, op);
}

static inline OrtStatus* ort_add_domain(const OrtApi* api, OrtSessionOptions* options, OrtCustomOpDomain* domain) {
    return ORT_CALL(api, 28, OrtSessionOptions*, OrtCustomOpDomain*)(options, domain);
}

static inline OrtStatus* ort_input_count(const OrtApi* api, const OrtSession* session, size_t* out) {
    return ORT_CALL(api, 30, const OrtSession*, size_t*)(session, out);
}

static inline OrtStatus* ort_output_count(const OrtApi* api, const OrtSession* session, size_t* out) {
    return ORT_CALL(api, 31, const OrtSession*, size_t*)(session, out);
}

static inline OrtStatus* ort_input_type(const OrtApi* api, const OrtSession* session, size_t index, OrtTypeInfo** out) {
    return ORT_CALL(api, 33, const OrtSession*, size_t, OrtTypeInfo**)(session, index, out);
}

static inline OrtStatus* ort_output_type(const OrtApi* api, const OrtSession* session, size_t index,
                                         OrtTypeInfo** out) {
    return ORT_CALL(api, 34, const OrtSession*, size_t, OrtTypeInfo**)(session, index, out);
}

/* The name is the caller's, to be freed with ort_allocator_free. */
static inline OrtStatus* ort_input_name(const OrtApi* api, const OrtSession* session, size_t index,
                                        OrtAllocator* allocator, char** out) {
    return ORT_CALL(api, 36, const OrtSession*, size_t, OrtAllocator*, char**)(session, index, allocator, out);
}

static inline OrtStatus* ort_output_name(const OrtApi* api, const OrtSession* session, size_t index,
                                         OrtAllocator* allocator, char** out) {
    return ORT_CALL(api, 37, const OrtSession*, size_t, OrtAllocator*, char**)(session, index, allocator, out);
}

static inline OrtStatus* ort_create_run_options(const OrtApi* api, OrtRunOptions** out) {
    return ORT_CALL(api, 39, OrtRunOptions**)(out);
}

/* Every run under these options ends as soon as it can, with an error. */
static inline OrtStatus* ort_terminate(const OrtApi* api, OrtRunOptions* options) {
    return ORT_CALL(api, 46, OrtRunOptions*)(options);
}

/* Undoes ort_terminate() for runs that begin from then on. */
static inline OrtStatus* ort_unterminate(const OrtApi* api, OrtRunOptions* options) {
    return ORT_CALL(api, 47, OrtRunOptions*)(options);
}

static inline OrtStatus* ort_create_tensor(const OrtApi* api, OrtAllocator* allocator, const int64_t* dims, size_t rank,
                                           int dtype, OrtValue** out) {
    return ORT_CALL(api, 48, OrtAllocator*, const int64_t*, size_t, int, OrtValue**)(allocator, dims, rank, dtype, out);
}

/* A tensor over the caller's memory, which must outlive the tensor. */
static inline OrtStatus* ort_wrap_tensor(const OrtApi* api, const OrtMemoryInfo* memory, void* data, size_t bytes,
                                         const int64_t* dims, size_t rank, int dtype, OrtValue** out) {
    return ORT_CALL(api, 49, const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**)(
        memory, data, bytes, dims, rank, dtype, out);
}

static inline OrtStatus* ort_is_tensor(const OrtApi* api, const OrtValue* value, int* out) {
    return ORT_CALL(api, 50, const OrtValue*, int*)(value, out);
}

static inline OrtStatus* ort_tensor_data(const OrtApi* api, OrtValue* value, void** out) {
    return ORT_CALL(api, 51, OrtValue*, void**)(value, out);
}

/* Bytes of all strings of a tensor together, without terminators. */
static inline OrtStatus* ort_strings_bytes(const OrtApi* api, const OrtValue* value, size_t* out) {
    return ORT_CALL(api, 53, const OrtValue*, size_t*)(value, out);
}

/* All strings of a tensor, one after the other; offsets: where each begins. */
static inline OrtStatus* ort_strings(const OrtApi* api, const OrtValue* value, void* data, size_t bytes,
                                     size_t* offsets, size_t count) {
    return ORT_CALL(api, 54, const OrtValue*, void*, size_t, size_t*, size_t)(value, data, bytes, offsets, count);
}

/* The tensor part of a type belongs to the type; *out is NULL if it is no tensor. */
static inline OrtStatus* ort_type_tensor(const OrtApi* api, const OrtTypeInfo* type, const OrtTensorInfo** out) {
    return ORT_CALL(api, 55, const OrtTypeInfo*, const OrtTensorInfo**)(type, out);
}

static inline OrtStatus* ort_type_kind(const OrtApi* api, const OrtTypeInfo* type, int* out) {
    return ORT_CALL(api, 56, const OrtTypeInfo*, int*)(type, out);
}

static inline OrtStatus* ort_tensor_dtype(const OrtApi* api, const OrtTensorInfo* info, int* out) {
    return ORT_CALL(api, 60, const OrtTensorInfo*, int*)(info, out);
}

static inline OrtStatus* ort_tensor_rank(const OrtApi* api, const OrtTensorInfo* info, size_t* out) {
    return ORT_CALL(api, 61, const OrtTensorInfo*, size_t*)(info, out);
}

static inline OrtStatus* ort_tensor_dims(const OrtApi* api, const OrtTensorInfo* info, int64_t* dims, size_t rank) {
    return ORT_CALL(api, 62, const OrtTensorInfo*, int64_t*, size_t)(info, dims, rank);
}

static inline OrtStatus* ort_tensor_info(const OrtApi* api, const OrtValue* value, OrtTensorInfo** out) {
    return ORT_CALL(api, 65, const OrtValue*, OrtTensorInfo**)(value, out);
}

static inline OrtStatus* ort_create_cpu_memory_info(const OrtApi* api, int allocator, int memory, OrtMemoryInfo** out) {
    return ORT_CALL(api, 69, int, int, OrtMemoryInfo**)(allocator, memory, out);
}

static inline OrtStatus* ort_allocator_free(const OrtApi* api, OrtAllocator* allocator, void* pointer) {
    return ORT_CALL(api, 76, OrtAllocator*, void*)(allocator, pointer);
}

/* The allocator is the runtime's own: it is never released. */
static inline OrtStatus* ort_default_allocator(const OrtApi* api, OrtAllocator** out) {
    return ORT_CALL(api, 78, OrtAllocator**)(out);
}

static inline OrtStatus* ort_attribute_int(const OrtApi* api, const OrtKernelInfo* info, const char* name,
                                           int64_t* out) {
    return ORT_CALL(api, 86, const OrtKernelInfo*, const char*, int64_t*)(info, name, out);
}

/* *bytes: in, the size of `out`; out, the size of the string with its terminator. out NULL: only measure. */
static inline OrtStatus* ort_attribute_string(const OrtApi* api, const OrtKernelInfo* info, const char* name, char* out,
                                              size_t* bytes) {
    return ORT_CALL(api, 87, const OrtKernelInfo*, const char*, char*, size_t*)(info, name, out, bytes);
}

static inline OrtStatus* ort_kernel_input(const OrtApi* api, const OrtKernelContext* context, size_t index,
                                          const OrtValue** out) {
    return ORT_CALL(api, 90, const OrtKernelContext*, size_t, const OrtValue**)(context, index, out);
}

static inline OrtStatus* ort_kernel_output(const OrtApi* api, OrtKernelContext* context, size_t index,
                                           const int64_t* dims, size_t rank, OrtValue** out) {
    return ORT_CALL(api, 91, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)(context, index, dims, rank,
                                                                                            out);
}

static inline OrtStatus* ort_add_config(const OrtApi* api, OrtSessionOptions* options, const char* key,
                                        const char* value) {
    return ORT_CALL(api, 130, OrtSessionOptions*, const char*, const char*)(options, key, value);
}

/* Sessions with session.use_env_allocators share this allocator; it must outlive the environment. */
static inline OrtStatus* ort_register_allocator(const OrtApi* api, OrtEnv* env, OrtAllocator* allocator) {
    return ORT_CALL(api, 176, OrtEnv*, OrtAllocator*)(env, allocator);
}

/* Set the length of one string of a tensor and get its bytes to write. */
static inline OrtStatus* ort_string_buffer(const OrtApi* api, OrtValue* value, size_t index, size_t bytes, char** out) {
    return ORT_CALL(api, 252, OrtValue*, size_t, size_t, char**)(value, index, bytes, out);
}

#endif
