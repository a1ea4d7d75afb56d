/* The machine of the fake driver: cards, MIG instances, and which of them a process sees. */
#include "fake_machine.h"

#include <cstdio>
#include <cstring>
#include <sstream>

namespace fake {

namespace {

constexpr int PCI_BUS_FIRST = 0x10;

struct Model {
    int capability;
    int shared_bytes; /* bound on the shared memory of a block that opts in */
    int multiprocessors;
};
/* Compute capabilities from the table in the CUDA programming guide, with a card of each. */
constexpr Model MODELS[] = {
    {70, 98304, 80},   {75, 65536, 40},    {80, 166912, 108},  {86, 101376, 84},   {87, 166912, 16},  {89, 101376, 142},
    {90, 232448, 132}, {100, 232448, 148}, {103, 232448, 148}, {120, 101376, 170}, {121, 101376, 48},
};
constexpr Model HOST_MODEL = {0, 232448, 1};

Model model_of(int capability) {
    for (const Model& one : MODELS) {
        if (one.capability == capability)
            return one;
    }
    return {capability, HOST_MODEL.shared_bytes, HOST_MODEL.multiprocessors};
}

CUuuid uuid_of(Shown one) {
    CUuuid uuid;
    memset(uuid.bytes, 0xFA, sizeof uuid.bytes);
    uuid.bytes[14] = static_cast<unsigned char>(one.instance < 0 ? 0xFA : one.instance);
    uuid.bytes[15] = static_cast<unsigned char>(one.card);
    return uuid;
}

/* A UUID as nvidia-smi prints it. */
std::string name_of(Shown one) {
    std::string name = one.instance < 0 ? "GPU-" : "MIG-";
    CUuuid uuid = uuid_of(one);
    for (int index = 0; index < 16; index++) {
        char digits[4];
        snprintf(digits, sizeof digits, "%s%02x", index == 4 || index == 6 || index == 8 || index == 10 ? "-" : "",
                 uuid.bytes[index]);
        name += digits;
    }
    return name;
}

/* Resolves an entry of CUDA_VISIBLE_DEVICES: a card by its number or the beginning of its UUID, an instance
 * by the beginning of its UUID. A card in MIG mode stands for its first instance. False if the entry matches
 * nothing, or more than one device. */
bool find_entry(const std::string& entry, Shown* found) {
    Driver& all = driver();
    int matches = 0;
    for (int card = 0; card < all.device_count; card++) {
        Shown whole = {card, -1}, first = {card, all.instances[card] ? 0 : -1};
        if (entry == std::to_string(card) || (entry.starts_with("GPU-") && name_of(whole).starts_with(entry)))
            *found = first, matches++;
        for (int instance = 0; instance < all.instances[card]; instance++) {
            if (entry.starts_with("MIG-") && name_of({card, instance}).starts_with(entry))
                *found = {card, instance}, matches++;
        }
    }
    return matches == 1;
}

}  // namespace

bool is_shown(CUdevice device) { return device >= 0 && size_t(device) < driver().shown.size(); }

void show_devices() {
    Driver& all = driver();
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    std::string entries = visible ? visible : "";
    for (int card = 0; !visible && card < all.device_count; card++)
        entries += (card ? "," : "") + std::to_string(card);
    std::stringstream stream(entries);
    Shown found;
    all.shown.clear();
    for (std::string entry; std::getline(stream, entry, ',') && find_entry(entry, &found);)
        all.shown.push_back(found); /* entries behind an invalid one are ignored */
    auto instance = std::find_if(all.shown.begin(), all.shown.end(), [](Shown one) { return one.instance >= 0; });
    if (instance != all.shown.end()) { /* a process sees one instance, and no card beside it */
        Shown only = *instance;
        all.shown.assign(1, only);
    }
}

int attribute_of(int capability, int attribute, int* value) {
    Model model = capability ? model_of(capability) : HOST_MODEL;
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = THREADS_MAX; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = SHARED_BYTES; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = model.shared_bytes; break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = REGISTERS; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = model.multiprocessors; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: /* 0 is an architecture that no card has */
            *value = capability / 10;
            break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

}  // namespace fake

using namespace fake;

/* ----- the driver API ------------------------------------------------------------------------- */

EXPORTED CUresult cuDeviceGetCount(int* count) {
    BEGIN(cuDeviceGetCount);
    *count = int(all.shown.size());
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    BEGIN(cuDeviceGet);
    if (!is_shown(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    BEGIN(cuDeviceGetName);
    if (!is_shown(device))
        return CUDA_ERROR_INVALID_DEVICE;
    Shown one = all.shown[size_t(device)];
    snprintf(name, size_t(length), one.instance < 0 ? "fake GPU %d" : "fake GPU %d MIG 1g.1gb", one.card);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
    BEGIN(cuDeviceGetUuid_v2);
    if (!is_shown(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *uuid = uuid_of(all.shown[size_t(device)]);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetPCIBusId(char* id, int length, CUdevice device) {
    BEGIN(cuDeviceGetPCIBusId);
    if (!is_shown(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(id, size_t(length), "0000:%02X:00.0", PCI_BUS_FIRST + all.shown[size_t(device)].card);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    BEGIN(cuDeviceGetAttribute);
    if (!is_shown(device))
        return CUDA_ERROR_INVALID_DEVICE;
    return attribute_of(all.capability, attribute, value);
}

EXPORTED CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    BEGIN(cuDeviceTotalMem_v2);
    *bytes = all.device_bytes;
    return CUDA_SUCCESS;
}

/* ----- what tests tell and ask it ----------------------------------------------------------------- */

EXPORTED void cw_fake_setup(int device_count, size_t device_bytes, int driver_version) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.device_count = std::clamp(device_count, 1, DEVICES_MAX);
    all.device_bytes = device_bytes;
    all.version = driver_version;
    show_devices();
}

EXPORTED void cw_fake_card(int capability) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.capability = capability;
}

EXPORTED int cw_fake_pinned_node(void) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    return all.pinned_node;
}

EXPORTED void cw_fake_mig(int card, int instances) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    if (card >= 0 && card < DEVICES_MAX)
        all.instances[card] = std::clamp(instances, 0, INSTANCES_MAX);
    show_devices();
}
