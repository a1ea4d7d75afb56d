/* MANUAL Modules of the fake driver, and their kernels.  A module for the host is a shared object
 * (tests/native/host_kernels.h makes one of a CUDA C file). Of a cubin or PTX only the properties of its
 * kernels are read: architecture, registers, shared memory, parameters. Loads and launches of them are
 * checked as a card's driver would check them; the kernels compute nothing. */
#include "../host_needs.h"
#include "fake_machine.h"

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string_view>

namespace fake {

namespace {

constexpr int WARP = 32, WARP_REGISTERS = 256, WARPS_STEP = 4; /* unit in which warps get registers */
constexpr int RESERVED_BYTES = 1024; /* shared memory that a cubin from 9.0 on counts as its own */
constexpr uint16_t MACHINE_CUDA = 190;

#if defined(__x86_64__)
constexpr uint16_t MACHINE = EM_X86_64;
#elif defined(__aarch64__)
constexpr uint16_t MACHINE = EM_AARCH64;
#endif

/* The threads of the largest block for which a multiprocessor has the registers. */
int threads_of(int registers) {
    if (registers <= 0)
        return THREADS_MAX;
    int of_warp = (registers * WARP + WARP_REGISTERS - 1) / WARP_REGISTERS * WARP_REGISTERS;
    return std::min(THREADS_MAX, REGISTERS / of_warp / WARPS_STEP * WARPS_STEP * WARP);
}

/* Whether a card runs code for an architecture ("sm_86", "sm_90a", "compute_80"). */
bool runs(int capability, std::string_view target) {
    bool is_ptx = target.substr(0, 8) == "compute_";
    target.remove_prefix(is_ptx ? 8 : 3);
    int number = atoi(std::string(target).c_str());
    char suffix = target.back();
    if (suffix == 'a' || number == 87) /* also excludes code for a Jetson */
        return number == capability;
    bool is_family = number / 10 == capability / 10 && number <= capability && capability != 87;
    return is_family || (is_ptx && suffix != 'f' && number <= capability);
}

/* The size of an ELF file in memory, which ends with its section headers or its last segment; 0 if it is not
 * ELF. */
size_t elf_bytes(const void* image, uint16_t* machine) {
    const Elf64_Ehdr* header = static_cast<const Elf64_Ehdr*>(image);
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64)
        return 0;
    *machine = header->e_machine;
    size_t end = header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
    const char* base = static_cast<const char*>(image) + header->e_phoff;
    for (int index = 0; index < header->e_phnum; index++) {
        const Elf64_Phdr* segment = reinterpret_cast<const Elf64_Phdr*>(base + index * header->e_phentsize);
        end = std::max(end, size_t(segment->p_offset + segment->p_filesz));
    }
    return end;
}

/* Opens a shared object that lies in memory; nullptr on failure. The caller owns the file, and closes it
 * afterwards. */
void* open_library(const void* image, size_t bytes, int* descriptor) {
    int file = *descriptor = memfd_create("clockwork-kernels", MFD_CLOEXEC);
    if (file < 0)
        return nullptr;
    const char* from = static_cast<const char*>(image);
    while (bytes) {
        ssize_t written = write(file, from, bytes);
        if (written <= 0)
            return nullptr;
        from += written;
        bytes -= size_t(written);
    }
    return dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
}

int open_host(const void* image, size_t bytes, Module* module) {
    module->library = open_library(image, bytes, &module->file);
    if (!module->library)
        return CUDA_ERROR_INVALID_IMAGE;
    const char* target = static_cast<const char*>(dlsym(module->library, "cw_host_target"));
    if (!target)
        return CUDA_SUCCESS;
    module->architecture = atoi(strchr(target, '_') + 1);
    if (!strncmp(target, "compute_", strlen("compute_"))) {
        if (int error = counted(F_jit, current))
            return error;
    }
    return runs(driver().capability, target) ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}

/* ----- cubins ---------------------------------------------------------------------------------- */

enum {
    FORM_SIZED = 4,
    INFO_MAX_THREADS = 0x05,
    INFO_REQUIRED_THREADS = 0x10,
    INFO_FRAME = 0x11,
    INFO_PARAMETER = 0x17,
    INFO_REGISTERS = 0x2f
};

/* Calls told(attribute, words) for each attribute of a .nv.info section that has words. */
template <typename Told>
void read_info(const char* at, const char* end, Told told) {
    while (at + 4 <= end) {
        uint8_t form = uint8_t(at[0]), attribute = uint8_t(at[1]);
        uint16_t size;
        memcpy(&size, at + 2, sizeof size);
        at += 4;
        if (form != FORM_SIZED)
            continue;
        uint32_t words[3] = {};
        memcpy(words, at, std::min(size_t(size), sizeof words));
        told(attribute, words);
        at += size;
    }
}

/* The architecture of a cubin, as in "sm_90a". */
std::string target_of(const Elf64_Ehdr* header) {
    uint32_t flags = header->e_flags;
    bool is_new = header->e_ident[EI_ABIVERSION] >= 8;
    int number = is_new ? flags >> 8 & 0xff : flags & 0xff;
    bool is_specific = is_new ? (flags & 0xf) == 0xa : flags & 0x800;
    return "sm_" + std::to_string(number) + (is_specific ? "a" : "");
}

int open_cubin(const void* image, Module* module) {
    const Elf64_Ehdr* header = static_cast<const Elf64_Ehdr*>(image);
    const char* base = static_cast<const char*>(image);
    const Elf64_Shdr* sections = reinterpret_cast<const Elf64_Shdr*>(base + header->e_shoff);
    std::string target = target_of(header);
    module->architecture = atoi(target.c_str() + 3);
    if (!runs(driver().capability, target))
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    const char* names = base + sections[header->e_shstrndx].sh_offset;
    const Elf64_Sym* symbols = nullptr;
    const char* symbol_names = nullptr;
    auto each = [&](auto do_it) {
        for (int index = 0; index < header->e_shnum; index++)
            do_it(std::string(names + sections[index].sh_name), sections[index]);
    };
    each([&](const std::string& name, const Elf64_Shdr& section) {
        if (name.starts_with(".nv.info."))
            module->kernels[name.substr(9)];
        if (section.sh_type == SHT_SYMTAB) {
            symbols = reinterpret_cast<const Elf64_Sym*>(base + section.sh_offset);
            symbol_names = base + sections[section.sh_link].sh_offset;
        }
    });
    each([&](const std::string& name, const Elf64_Shdr& section) {
        const char *begin = base + section.sh_offset, *end = begin + section.sh_size;
        if (name == ".nv.info" && symbols) {
            read_info(begin, end, [&](int attribute, const uint32_t* words) {
                auto found = module->kernels.find(symbol_names + symbols[words[0]].st_name);
                if (attribute == INFO_REGISTERS && found != module->kernels.end())
                    found->second.registers = int(words[1]);
                if (attribute == INFO_FRAME && found != module->kernels.end())
                    found->second.local_bytes = int(words[1]);
            });
        } else if (name.starts_with(".nv.info.")) {
            Code& code = module->kernels[name.substr(9)];
            code.is_known = true;
            read_info(begin, end, [&](int attribute, const uint32_t* words) {
                if (attribute == INFO_PARAMETER) {
                    size_t ordinal = words[1] & 0xffff;
                    code.sizes.resize(std::max(code.sizes.size(), ordinal + 1));
                    code.sizes[ordinal] = int(words[2] >> 18);
                }
                if (attribute == INFO_MAX_THREADS || attribute == INFO_REQUIRED_THREADS)
                    code.threads = int(words[0] * words[1] * words[2]);
            });
        } else if (name.starts_with(".nv.shared.") && module->kernels.count(name.substr(11))) {
            int reserved = module->architecture >= 90 ? RESERVED_BYTES : 0;
            module->kernels[name.substr(11)].shared_bytes = std::max(0, int(section.sh_size) - reserved);
        }
    });
    return CUDA_SUCCESS;
}

/* ----- PTX --------------------------------------------------------------------------------------- */

/* The beginning of the "cubin" that is made of PTX: the same text for one architecture. */
constexpr char LINKED[] = "//linked sm_";

/* The size of a text that ends with a zero. */
int open_ptx(const char* text, Module* module) {
    Driver& all = driver();
    if (!strncmp(text, LINKED, strlen(LINKED))) {
        if (!runs(all.capability, text + strlen("//linked ")))
            return CUDA_ERROR_NO_BINARY_FOR_GPU;
    } else if (int error = counted(F_jit, current)) {
        return error;
    }
    const char* target = strstr(text, ".target sm_");
    if (!target || !strstr(text, ".version"))
        return CUDA_ERROR_INVALID_PTX;
    target += strlen(".target sm_");
    std::string name = "compute_" + std::string(target, strcspn(target, ", \r\n"));
    if (!runs(driver().capability, name))
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    module->architecture = driver().capability;
    for (const char* at = text; (at = strstr(at, ".entry"));) {
        at += strlen(".entry");
        at += strspn(at, " \t\r\n");
        Code& code = module->kernels[std::string(at, strcspn(at, "( \t\r\n"))];
        const char *body = at + strcspn(at, "{"), *bound = strstr(at, ".maxntid");
        code.is_known = true;
        for (const char* one = at; (one = strstr(one, ".param")) && one < body; one++)
            code.sizes.push_back(strtol(strpbrk(one, "0123456789"), nullptr, 10) / 8);
        if (bound && bound < body) {
            int sides[3] = {1, 1, 1};
            sscanf(bound, ".maxntid %d, %d, %d", &sides[0], &sides[1], &sides[2]);
            code.threads = sides[0] * sides[1] * sides[2];
        }
    }
    return CUDA_SUCCESS;
}

int open_module(const void* image, Module* module) {
    uint16_t machine = 0;
    size_t bytes = elf_bytes(image, &machine);
    if (bytes && machine == MACHINE)
        return open_host(image, bytes, module);
    if (bytes)
        return machine == MACHINE_CUDA ? open_cubin(image, module) : CUDA_ERROR_NO_BINARY_FOR_GPU;
    const char* text = static_cast<const char*>(image);
    return text[0] == '/' || text[0] == '.' ? open_ptx(text, module) : CUDA_ERROR_INVALID_IMAGE;
}

/* Prepares a kernel for launching. */
void introduce(Code& code, Module* module) {
    code.module = module;
    code.is_loaded = !driver().loads_lazily;
    code.threads = std::min(code.threads, threads_of(code.registers));
    code.dynamic_bytes = std::max(0, SHARED_BYTES - code.shared_bytes);
    driver().codes.insert(&code);
}

void close_module(Module* module) {
    for (auto& [name, code] : module->kernels)
        driver().codes.erase(&code);
    if (module->library)
        dlclose(module->library);
    if (module->file >= 0)
        close(module->file);
    delete module;
}

}  // namespace

int make_launch(CUfunction function, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                void** arguments, std::unique_lock<std::mutex>& guard, Item* item) {
    constexpr unsigned GRID_MAX[] = {0x7fffffff, 65535, 65535}, BLOCK_MAX[] = {1024, 1024, 64};
    Code* code = reinterpret_cast<Code*>(function);
    if (!driver().codes.count(code) || code->module->device != current)
        return CUDA_ERROR_INVALID_HANDLE;
    for (int axis = 0; axis < 3; axis++) {
        if (!grid[axis] || grid[axis] > GRID_MAX[axis] || !block[axis] || block[axis] > BLOCK_MAX[axis])
            return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (threads > THREADS_MAX || shared_bytes > unsigned(code->dynamic_bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (threads > unsigned(code->threads))
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    item->kind = Item::KERNEL;
    item->kernel = code->kernel;
    item->widths = code->widths;
    std::copy(grid, grid + 3, item->grid);
    std::copy(block, block + 3, item->block);
    for (; *arguments; arguments++) {
        if (item->values.size() == ARGUMENTS_MAX)
            return CUDA_ERROR_INVALID_VALUE;
        uint64_t value;
        memcpy(&value, *arguments, sizeof value);
        item->values.push_back(value);
    }
    if (code->is_known && item->values.size() != code->sizes.size())
        /* a card's driver would read the missing pointers from arbitrary memory */
        return CUDA_ERROR_INVALID_VALUE;
    if (!code->is_loaded) {
        code->is_loaded = true;
        Stalled noted("first launch", current->ordinal);
        stall(guard, false);
    }
    return CUDA_SUCCESS;
}

size_t local_bytes_of(CUfunction function) { return size_t(reinterpret_cast<Code*>(function)->local_bytes); }

void have_local(size_t bytes, std::unique_lock<std::mutex>& guard) {
    if (bytes <= current->local_bytes)
        return;
    Stalled noted("launch", current->ordinal);
    stall(guard, false);
    current->local_bytes = bytes;
}

}  // namespace fake

using namespace fake;

/* ----- the driver API ------------------------------------------------------------------------- */

EXPORTED CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    BEGIN_STALLING(cuModuleLoadData, false);
    Module* made = new Module;
    made->device = current;
    if (int error = open_module(image, made)) {
        close_module(made);
        return error;
    }
    for (auto& [name, code] : made->kernels)
        introduce(code, made);
    all.modules.insert(made);
    *module = reinterpret_cast<CUmodule>(made);
    return CUDA_SUCCESS;
}

/* Linking turns PTX, or a module for the host that stands for PTX, into the same code for this card's
 * architecture. */
struct CUlinkState_st {
    std::string made;
    char* log;
    size_t log_bytes;
};

EXPORTED CUresult cuLinkCreate_v2(unsigned count, int* options, void** values, CUlinkState* state) {
    BEGIN_CONTEXT(cuLinkCreate_v2);
    CUlinkState made = *state = new CUlinkState_st{};
    for (unsigned index = 0; index < count; index++) {
        if (options[index] == CU_JIT_ERROR_LOG_BUFFER)
            made->log = static_cast<char*>(values[index]);
        if (options[index] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
            made->log_bytes = reinterpret_cast<size_t>(values[index]);
    }
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuLinkAddData_v2(CUlinkState state, int type, void* data, size_t size, const char*, unsigned, int*,
                                   void**) {
    BEGIN_CONTEXT(cuLinkAddData_v2);
    if (type != CU_JIT_INPUT_PTX || !size)
        return CUDA_ERROR_INVALID_VALUE;
    std::string text(static_cast<const char*>(data), size);
    uint16_t machine = 0;
    bool is_host = size > sizeof(Elf64_Ehdr) && elf_bytes(data, &machine);
    size_t at = text.find(is_host ? "compute_" : ".target sm_");
    if (text.back() || at == std::string::npos) {
        if (state->log)
            snprintf(state->log, state->log_bytes, "ptxas fatal: no .target in line 1");
        return CUDA_ERROR_INVALID_PTX;
    }
    std::string name =
        is_host ? text.c_str() + at : "compute_" + text.substr(at + 11, text.find_first_of(", \n", at + 11) - at - 11);
    if (!runs(all.capability, name))
        return CUDA_ERROR_INVALID_PTX;
    if (int error = counted(F_jit, current))
        return error;
    std::string own = "sm_" + std::to_string(all.capability);
    if (is_host)
        text.replace(at, name.size(), own + std::string(name.size() - own.size(), '\0'));
    else
        text = "//linked " + own + "\n" + text;
    state->made = text;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuLinkComplete(CUlinkState state, void** cubin, size_t* size) {
    BEGIN_CONTEXT(cuLinkComplete);
    if (state->made.empty())
        return CUDA_ERROR_INVALID_VALUE;
    *cubin = state->made.data();
    *size = state->made.size();
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuLinkDestroy(CUlinkState state) {
    BEGIN_CONTEXT(cuLinkDestroy);
    delete state;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleUnload(CUmodule handle) {
    BEGIN_STALLING(cuModuleUnload, false);
    Module* module = reinterpret_cast<Module*>(handle);
    if (!all.modules.erase(module))
        return CUDA_ERROR_INVALID_HANDLE;
    close_module(module);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
    BEGIN_CONTEXT(cuModuleGetFunction);
    Module* module = reinterpret_cast<Module*>(handle);
    if (!all.modules.count(module))
        return CUDA_ERROR_INVALID_HANDLE;
    auto found = module->kernels.find(name);
    if (found == module->kernels.end()) {
        void* entry = nullptr;
        if (module->library && !(entry = dlsym(module->library, ("cw_host_" + std::string(name)).c_str())))
            entry = dlsym(module->library, name);
        if (!entry)
            return CUDA_ERROR_NOT_FOUND;
        found = module->kernels.try_emplace(name).first;
        Code& code = found->second;
        code.kernel = reinterpret_cast<Kernel>(entry);
        void* needs = dlsym(module->library, ("cw_needs_" + std::string(name)).c_str());
        if (const cw_host_needs* known = static_cast<const cw_host_needs*>(needs)) {
            code.registers = known->registers;
            code.shared_bytes = known->shared_bytes;
            code.threads = known->threads;
            code.local_bytes = known->local_bytes;
            code.is_known = true;
            code.sizes.assign(known->sizes, known->sizes + known->parameters);
            code.widths = known->widths;
        }
        introduce(code, module);
    }
    *function = reinterpret_cast<CUfunction>(&found->second);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
    BEGIN_CONTEXT(cuFuncGetAttribute);
    Code* code = reinterpret_cast<Code*>(function);
    if (!all.codes.count(code))
        return CUDA_ERROR_INVALID_HANDLE;
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = code->threads; break;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = code->shared_bytes; break;
        case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = code->local_bytes; break;
        case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = code->registers; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = code->dynamic_bytes; break;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* size) {
    BEGIN_CONTEXT(cuFuncGetParamInfo);
    Code* code = reinterpret_cast<Code*>(function);
    if (!all.codes.count(code))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!code->is_known)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (index >= code->sizes.size())
        return CUDA_ERROR_INVALID_VALUE;
    *offset = 0;
    for (size_t before = 0; before <= index; before++) {
        size_t bytes = size_t(code->sizes[before]);
        *offset = (*offset + bytes - 1) / bytes * bytes + (before < index ? bytes : 0);
    }
    *size = size_t(code->sizes[index]);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxGetLimit(size_t* value, int limit) {
    BEGIN_CONTEXT(cuCtxGetLimit);
    if (limit != CU_LIMIT_STACK_SIZE)
        return CUDA_ERROR_INVALID_VALUE;
    *value = current->local_bytes;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxSetLimit(int limit, size_t value) {
    BEGIN_STALLING(cuCtxSetLimit, false);
    if (limit != CU_LIMIT_STACK_SIZE)
        return CUDA_ERROR_INVALID_VALUE;
    current->local_bytes = value;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    BEGIN_CONTEXT(cuFuncSetAttribute);
    Code* code = reinterpret_cast<Code*>(function);
    if (!all.codes.count(code))
        return CUDA_ERROR_INVALID_HANDLE;
    int most = 0;
    attribute_of(all.capability, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &most);
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || value > most - code->shared_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    code->dynamic_bytes = value;
    return CUDA_SUCCESS;
}
