#include "device/operators.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device/byte_pairs.h"
#include "device/images.h"
#include "device/operator_bounds.h"
#include "device/wordpiece.h"

/* An operator as the runtime sees it; later members than version 16's are not read, for `version` says so. */
struct OrtCustomOp {
    std::uint32_t version;
    void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
    const char* (*GetName)(const OrtCustomOp*);
    const char* (*GetExecutionProviderType)(const OrtCustomOp*);
    int (*GetInputType)(const OrtCustomOp*, std::size_t);
    std::size_t (*GetInputTypeCount)(const OrtCustomOp*);
    int (*GetOutputType)(const OrtCustomOp*, std::size_t);
    std::size_t (*GetOutputTypeCount)(const OrtCustomOp*);
    void (*KernelCompute)(void*, OrtKernelContext*);
    void (*KernelDestroy)(void*);
    int (*GetInputCharacteristic)(const OrtCustomOp*, std::size_t);
    int (*GetOutputCharacteristic)(const OrtCustomOp*, std::size_t);
    int (*GetInputMemoryType)(const OrtCustomOp*, std::size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp*);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
    OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
    OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
};

namespace clockwork::device {

namespace {

constexpr std::uint32_t OPERATOR_VERSION = 16;
constexpr const char* DOMAIN_NAME = "clockwork";

// A status that the runtime returned; the function that catches it passes it on.
struct Failed {
    OrtStatus* status;
};

void check(OrtStatus* status) {
    if (status != nullptr)
        throw Failed{status};
}

// A copied tensor of strings.
struct Strings {
    std::vector<char> bytes;
    std::vector<std::size_t> offsets;

    Strings(const OrtApi* api, OrtKernelContext* context) {
        const OrtValue* value = nullptr;
        OrtTensorInfo* info = nullptr;
        check(ort_kernel_input(api, context, 0, &value));
        check(ort_tensor_info(api, value, &info));
        std::size_t rank = 0, total = 0;
        std::int64_t dims[1] = {0};
        OrtStatus* status = ort_tensor_rank(api, info, &rank);
        if (status == nullptr && rank == 1)
            status = ort_tensor_dims(api, info, dims, 1);
        ort_release_tensor_info(api, info);
        check(status);
        if (rank != 1)
            throw Failed{ort_create_status(api, ORT_INVALID_ARGUMENT, "the strings are not in a list")};
        check(ort_strings_bytes(api, value, &total));
        bytes.resize(total + 1);
        offsets.resize(static_cast<std::size_t>(dims[0]) + 1);
        check(ort_strings(api, value, bytes.data(), total, offsets.data(), count()));
        offsets.back() = total;
    }

    std::size_t count() const { return offsets.size() - 1; }
    std::string_view operator[](std::size_t index) const {
        return {bytes.data() + offsets[index], offsets[index + 1] - offsets[index]};
    }
};

class Attributes {
public:
    Attributes(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

    // Reads a number within bounds. Throws std::invalid_argument outside of them, and the runtime makes no
    // session.
    std::int64_t number(const char* name, std::int64_t least, std::int64_t most) const {
        std::int64_t value = 0;
        check(ort_attribute_int(api_, info_, name, &value));
        if (value < least || value > most)
            throw std::invalid_argument(std::string("attribute ") + name + " is " + std::to_string(value) + "; " +
                                        std::to_string(least) + " to " + std::to_string(most) + " are served");
        return value;
    }
    std::size_t size(const char* name, std::int64_t least, std::int64_t most) const {
        return static_cast<std::size_t>(number(name, least, most));
    }
    bool flag(const char* name) const { return number(name, 0, 1) != 0; }
    std::string text(const char* name) const {
        std::size_t bytes = 0;
        check(ort_attribute_string(api_, info_, name, nullptr, &bytes));
        std::string value(bytes, '\0');
        check(ort_attribute_string(api_, info_, name, value.data(), &bytes));
        value.resize(bytes > 0 ? bytes - 1 : 0);
        return value;
    }

private:
    const OrtApi* api_;
    const OrtKernelInfo* info_;
};

OrtStatus* invalid_input(const OrtApi* api, const char* what, std::size_t index, const std::string& problem) {
    std::string text = std::string(INPUT_MARK) + what + " " + std::to_string(index) + " " + problem;
    return ort_create_status(api, ORT_INVALID_ARGUMENT, text.c_str());
}

template <typename Element>
Element* output(const OrtApi* api, OrtKernelContext* context, std::size_t index,
                const std::vector<std::int64_t>& dims) {
    OrtValue* value = nullptr;
    void* data = nullptr;
    check(ort_kernel_output(api, context, index, dims.data(), dims.size(), &value));
    check(ort_tensor_data(api, value, &data));
    return static_cast<Element*>(data);
}

// ----- the operators ----------------------------------------------------------------------------------

struct DecodeJpeg {
    static constexpr const char* NAME = "DecodeJpeg";
    static constexpr std::size_t OUTPUTS = 1;
    static constexpr int OUTPUT_TYPE = ORT_UINT8;

    ImageForm form;

    explicit DecodeJpeg(const Attributes& attributes)
        : form{attributes.size("width", 1, SIDE_MAX),
               attributes.size("height", 1, SIDE_MAX),
               attributes.size("shortest", 0, SIDE_MAX),
               attributes.size("channels", 1, 3),
               attributes.flag("bicubic") ? Filter::BICUBIC : Filter::BILINEAR,
               attributes.size("pixels_max", 1, JPEG_PIXELS_MAX)} {
        auto sides = [&] { return std::to_string(form.height) + " x " + std::to_string(form.width); };
        if (form.channels == 2)
            throw std::invalid_argument("attribute channels is 2; 1 and 3 are served");
        if (form.height * form.width > static_cast<std::size_t>(JPEG_PIXELS_MAX))
            throw std::invalid_argument("attributes height and width: " + sides() + " pixels; at most " +
                                        std::to_string(JPEG_PIXELS_MAX) + " are served");
        if (form.shortest != 0 && form.shortest < std::max(form.height, form.width))
            throw std::invalid_argument("attribute shortest is " + std::to_string(form.shortest) +
                                        ", of which no middle of " + sides() + " pixels can be cut");
    }

    OrtStatus* compute(const OrtApi* api, OrtKernelContext* context) const {
        Strings images(api, context);
        std::size_t size = form.height * form.width * form.channels;
        auto dims = {images.count(), form.height, form.width, form.channels};
        std::uint8_t* target = output<std::uint8_t>(api, context, 0, {dims.begin(), dims.end()});
        std::string problem;
        for (std::size_t index = 0; index < images.count(); ++index) {
            if (!read_image(images[index], form, target + index * size, problem))
                return invalid_input(api, "image", index, problem);
        }
        return nullptr;
    }
};

// A tokenizer as an operator; Kind makes the tokenizer from the attributes.
template <typename Kind>
struct Tokens {
    static constexpr const char* NAME = Kind::NAME;
    static constexpr std::size_t OUTPUTS = 3;
    static constexpr int OUTPUT_TYPE = ORT_INT64;

    decltype(Kind::make(std::declval<Attributes>(), {})) tokenizer;
    std::int64_t padding;
    std::size_t length;  // tokens of every row of the output; 0: as many as the longest text of the batch

    explicit Tokens(const Attributes& attributes)
        : tokenizer(
              Kind::make(attributes, {attributes.text("specials"), attributes.text("before"), attributes.text("after"),
                                      attributes.size("tokens_max", 1, TOKENS_MAX), attributes.flag("truncates")})),
          padding(attributes.number("padding", 0, ID_MAX)),
          length(attributes.size("length", 0, TOKENS_MAX)) {
        if (std::size_t most = attributes.size("tokens_max", 1, TOKENS_MAX); length != 0 && length < most)
            throw std::invalid_argument("attribute length is " + std::to_string(length) + ", less than tokens_max, " +
                                        std::to_string(most));
    }

    OrtStatus* compute(const OrtApi* api, OrtKernelContext* context) const {
        Strings texts(api, context);
        std::vector<std::vector<std::int64_t>> rows(texts.count());
        std::size_t longest = length;
        std::string problem;
        for (std::size_t index = 0; index < texts.count(); ++index) {
            if (!tokenizer.encode(texts[index], rows[index], problem))
                return invalid_input(api, "text", index, problem);
            longest = std::max(longest, rows[index].size());
        }
        std::vector<std::int64_t> dims = {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(longest)};
        std::int64_t* ids = output<std::int64_t>(api, context, 0, dims);
        std::int64_t* mask = output<std::int64_t>(api, context, 1, dims);
        std::fill_n(output<std::int64_t>(api, context, 2, dims), rows.size() * longest, 0);
        for (const std::vector<std::int64_t>& row : rows) {
            ids = std::fill_n(std::copy(row.begin(), row.end(), ids), longest - row.size(), padding);
            mask = std::fill_n(std::fill_n(mask, row.size(), 1), longest - row.size(), 0);
        }
        return nullptr;
    }
};

struct WordPieceKind {
    static constexpr const char* NAME = "WordPiece";

    static WordPiece make(const Attributes& attributes, const Tokenizer::Common& common) {
        return {common,
                {attributes.text("vocabulary"), attributes.text("normalised"), attributes.text("removed"),
                 attributes.text("spaces"), attributes.text("alone"), attributes.text("prefix"),
                 attributes.number("unknown", 0, ID_MAX), attributes.size("word_max", 1, WORD_CHARACTERS_MAX)}};
    }
};

struct BytePairsKind {
    static constexpr const char* NAME = "BytePairs";

    static BytePairs make(const Attributes& attributes, const Tokenizer::Common& common) {
        return {common,
                {attributes.text("bytes"), attributes.text("merges"), attributes.text("letters"),
                 attributes.text("numbers"), attributes.text("spaces"), attributes.flag("begins_with_space")}};
    }
};

// ----- how the runtime calls them -----------------------------------------------------------------------

template <typename Operator>
struct Kernel {
    const OrtApi* api;
    Operator op;
};

// Converts any exception into a status: the caller is C.
template <typename Function>
OrtStatus* guarded(const OrtApi* api, Function&& function) {
    try {
        return function();
    } catch (const Failed& failed) {
        return failed.status;
    } catch (const std::exception& error) {
        return ort_create_status(api, ORT_INVALID_ARGUMENT, error.what());
    }
}

template <typename Operator>
OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(api, [&]() -> OrtStatus* {
        *kernel = new Kernel<Operator>{api, Operator(Attributes(api, info))};
        return nullptr;
    });
}

template <typename Operator>
OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    const Kernel<Operator>& self = *static_cast<const Kernel<Operator>*>(kernel);
    return guarded(self.api, [&] { return self.op.compute(self.api, context); });
}

template <typename Operator>
const OrtCustomOp* described() {
    static const OrtCustomOp op = {
        OPERATOR_VERSION,
        nullptr,
        [](const OrtCustomOp*) { return Operator::NAME; },
        [](const OrtCustomOp*) -> const char* { return nullptr; },
        [](const OrtCustomOp*, std::size_t) -> int { return ORT_STRING; },
        [](const OrtCustomOp*) { return std::size_t{1}; },
        [](const OrtCustomOp*, std::size_t) { return Operator::OUTPUT_TYPE; },
        [](const OrtCustomOp*) { return Operator::OUTPUTS; },
        nullptr,
        [](void* kernel) { delete static_cast<Kernel<Operator>*>(kernel); },
        [](const OrtCustomOp*, std::size_t) { return 0; },
        [](const OrtCustomOp*, std::size_t) { return 0; },
        [](const OrtCustomOp*, std::size_t) { return 0; },
        nullptr,
        nullptr,
        nullptr,
        nullptr,
        create<Operator>,
        compute<Operator>,
    };
    return &op;
}

std::mutex registering;
// a domain per runtime in this process, never freed: sessions go on using it
std::map<const OrtApi*, OrtCustomOpDomain*> domains;

}  // namespace

}  // namespace clockwork::device

void clockwork::device::end_operators_with(const std::atomic<bool>* flag) { ending = flag; }

OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    using namespace clockwork::device;
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    return guarded(api, [&]() -> OrtStatus* {
        std::lock_guard<std::mutex> guard(registering);
        OrtCustomOpDomain*& domain = domains[api];
        if (domain == nullptr) {
            OrtCustomOpDomain* made = nullptr;
            check(ort_create_domain(api, DOMAIN_NAME, &made));
            check(ort_add_operator(api, made, described<DecodeJpeg>()));
            check(ort_add_operator(api, made, described<Tokens<WordPieceKind>>()));
            check(ort_add_operator(api, made, described<Tokens<BytePairsKind>>()));
            domain = made;
        }
        return ort_add_domain(api, options, domain);
    });
}
