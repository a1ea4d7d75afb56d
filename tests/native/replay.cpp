// Runs a fuzz target without libFuzzer: on the files and directories given, and on SEEDS=n random scripts and
// random changes of those files. For compilers that have no libFuzzer, and for ThreadSanitizer. The input
// that aborts the target is left in the file that BROKEN names.
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

const std::string* running = nullptr;

void keep_input(int) {
    const char* path = std::getenv("BROKEN");
    int file = path != nullptr && running != nullptr ? open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644) : -1;
    if (file >= 0 && write(file, running->data(), running->size()) >= 0)
        close(file);
    std::_Exit(1);
}

}  // namespace

int main(int count, char** arguments) {
    namespace fs = std::filesystem;
    std::vector<std::string> inputs;
    for (int place = 1; place < count; ++place) {
        std::vector<fs::path> paths;
        if (fs::is_directory(arguments[place])) {
            for (const auto& entry : fs::directory_iterator(arguments[place]))
                paths.push_back(entry.path());
        } else {
            paths.emplace_back(arguments[place]);
        }
        for (const fs::path& path : paths) {
            std::ifstream file(path, std::ios::binary);
            inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        }
    }
    std::signal(SIGABRT, keep_input);
    auto run = [](const std::string& input) {
        running = &input;
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
    };
    for (const std::string& input : inputs)
        run(input);
    const char* wanted = std::getenv("SEEDS");
    long seeds = wanted != nullptr ? std::atol(wanted) : 0;
    for (long seed = 0; seed < seeds; ++seed) {
        std::mt19937_64 random(static_cast<std::uint64_t>(seed));
        std::string input;
        if (!inputs.empty() && seed % 2 == 0) {
            input = inputs[random() % inputs.size()];
            for (int changes = 8; changes > 0 && !input.empty(); --changes) {
                input[random() % input.size()] = static_cast<char>(random());
            }
        } else {
            input.resize(200 + random() % 2000);
            for (char& one : input)
                one = static_cast<char>(random());
        }
        run(input);
    }
    std::cout << inputs.size() << " inputs, " << seeds << " seeds" << std::endl;
    return 0;
}
