#include "device/heap.h"

#include <elf.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>

#include "device/workspace.h"

namespace clockwork::device {

namespace {

void* counted_malloc(std::size_t bytes) {
    MemoryAccount* account = counting_account();
    if (account == nullptr)
        return std::malloc(bytes);
    void* found = account->claim_heap(bytes) ? std::malloc(bytes) : nullptr;
    if (found != nullptr)
        account->take_heap(static_cast<std::int64_t>(malloc_usable_size(found)));
    return found;
}

int counted_memalign(void** found, std::size_t alignment, std::size_t bytes) {
    MemoryAccount* account = counting_account();
    if (account == nullptr)
        return posix_memalign(found, alignment, bytes);
    const int error = account->claim_heap(bytes) ? posix_memalign(found, alignment, bytes) : ENOMEM;
    if (error == 0)
        account->take_heap(static_cast<std::int64_t>(malloc_usable_size(*found)));
    return error;
}

void counted_free(void* pointer) {
    if (MemoryAccount* account = counting_account(); account != nullptr && pointer != nullptr)
        account->take_heap(-static_cast<std::int64_t>(malloc_usable_size(pointer)));
    std::free(pointer);
}

struct Entry {
    const char* name;
    void* counted;
    bool is_needed;
};

const Entry ENTRIES[] = {
    {"malloc", reinterpret_cast<void*>(counted_malloc), true},
    {"free", reinterpret_cast<void*>(counted_free), true},
    {"posix_memalign", reinterpret_cast<void*>(counted_memalign), false},
};

// Whether a relocation of this type makes an entry with a function's address.
bool is_entry(std::uint32_t type) {
#if defined(__x86_64__)
    return type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT;
#elif defined(__aarch64__)
    return type == R_AARCH64_JUMP_SLOT || type == R_AARCH64_GLOB_DAT;
#endif
}

// A loaded library: its tables as the loader has them.
struct Loaded {
    const dl_phdr_info* info;
    std::uintptr_t relro = 0, relro_end = 0;  // the range that the loader made read-only after relocation
    const ElfW(Sym) * symbols = nullptr;
    const char* names = nullptr;

    explicit Loaded(const dl_phdr_info* of) : info(of) {
        for (int index = 0; index < info->dlpi_phnum; ++index) {
            const ElfW(Phdr) & header = info->dlpi_phdr[index];
            if (header.p_type == PT_GNU_RELRO) {
                relro = info->dlpi_addr + header.p_vaddr;
                relro_end = relro + header.p_memsz;
            }
        }
    }

    // glibc writes addresses into the dynamic section where musl leaves offsets.
    std::uintptr_t address(ElfW(Addr) value) const { return value < info->dlpi_addr ? info->dlpi_addr + value : value; }

    bool set(void** entry, void* function) const {
        const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(entry);
        const std::uintptr_t page_bytes = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
        void* page = reinterpret_cast<void*>(at / page_bytes * page_bytes);
        const bool is_read_only = relro <= at && at < relro_end / page_bytes * page_bytes;
        if (is_read_only && mprotect(page, page_bytes, PROT_READ | PROT_WRITE) != 0)
            return false;
        // other threads call through the entry meanwhile
        __atomic_store_n(entry, function, __ATOMIC_RELEASE);
        return !is_read_only || mprotect(page, page_bytes, PROT_READ) == 0;
    }

    // Sets the entries of malloc() and free() among these relocations, and records which were found.
    bool set_among(const ElfW(Rela) * relocations, std::size_t bytes, bool* was_set) const {
        for (std::size_t index = 0; index < bytes / sizeof *relocations; ++index) {
            const ElfW(Rela) & relocation = relocations[index];
            if (!is_entry(static_cast<std::uint32_t>(ELF64_R_TYPE(relocation.r_info))))
                continue;
            const char* name = names + symbols[ELF64_R_SYM(relocation.r_info)].st_name;
            for (std::size_t place = 0; place < std::size(ENTRIES); ++place) {
                if (std::strcmp(name, ENTRIES[place].name) != 0)
                    continue;
                if (!set(reinterpret_cast<void**>(info->dlpi_addr + relocation.r_offset), ENTRIES[place].counted))
                    return false;
                was_set[place] = true;
            }
        }
        return true;
    }

    bool set_all() {
        const ElfW(Rela)* calls = nullptr;
        const ElfW(Rela)* others = nullptr;
        std::size_t calls_bytes = 0, others_bytes = 0;
        for (int index = 0; index < info->dlpi_phnum; ++index) {
            if (info->dlpi_phdr[index].p_type != PT_DYNAMIC)
                continue;
            auto* entry = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[index].p_vaddr);
            for (; entry->d_tag != DT_NULL; ++entry) {
                switch (entry->d_tag) {
                    case DT_SYMTAB: symbols = reinterpret_cast<const ElfW(Sym)*>(address(entry->d_un.d_ptr)); break;
                    case DT_STRTAB: names = reinterpret_cast<const char*>(address(entry->d_un.d_ptr)); break;
                    case DT_JMPREL: calls = reinterpret_cast<const ElfW(Rela)*>(address(entry->d_un.d_ptr)); break;
                    case DT_PLTRELSZ: calls_bytes = entry->d_un.d_val; break;
                    case DT_RELA: others = reinterpret_cast<const ElfW(Rela)*>(address(entry->d_un.d_ptr)); break;
                    case DT_RELASZ: others_bytes = entry->d_un.d_val; break;
                    default: break;
                }
            }
        }
        bool was_set[std::size(ENTRIES)] = {};
        if (symbols == nullptr || names == nullptr || !set_among(calls, calls_bytes, was_set) ||
            !set_among(others, others_bytes, was_set))
            return false;
        for (std::size_t place = 0; place < std::size(ENTRIES); ++place) {
            if (ENTRIES[place].is_needed && !was_set[place])
                return false;
        }
        return true;
    }
};

struct Search {
    const char* library;
    bool is_done = false;
};

int visit(dl_phdr_info* info, std::size_t, void* wanted) {
    Search* search = static_cast<Search*>(wanted);
    if (std::strstr(info->dlpi_name, search->library) == nullptr)
        return 0;
    search->is_done = Loaded(info).set_all();
    return 1;
}

}  // namespace

bool count_heap(const char* library) {
    Search search{library};
    dl_iterate_phdr(visit, &search);
    return search.is_done;
}

bool counts_operator_new() {
    constexpr std::size_t BYTES = 4096;
    MemoryAccount account;
    account.limit_bytes = 2 * BYTES;
    account.counts_heap = true;
    charge(&account);
    ::operator delete(::operator new(BYTES));
    charge(nullptr);
    return account.peak_bytes >= BYTES;
}

}  // namespace clockwork::device
