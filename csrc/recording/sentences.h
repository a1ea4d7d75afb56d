// The sentences of failed answers, from the templates of the scheduler's binding (_core.TEXTS).
#pragma once

#include <cctype>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "duration.h"
#include "scheduler/types.h"

namespace clockwork {

class Sentences {
public:
    Sentences() = default;

    // templates: by AnswerText. status_names: by number, as Python spells them ("TOO_LATE"). reasons: by
    // Reason.
    Sentences(std::vector<std::string> templates, std::vector<std::string> status_names,
              std::vector<std::string> reasons)
        : templates_(std::move(templates)), status_names_(std::move(status_names)), reasons_(std::move(reasons)) {}

    std::string_view reason(Reason reason) const { return reasons_.at(static_cast<std::size_t>(reason)); }

    // The sentence of an ANSWER_FAILED. said: the worker's sentence, or null. The result is valid until the
    // next call.
    std::string_view text(const Command& command, std::string_view name, const std::string* said) {
        const std::string& pattern = templates_.at(static_cast<std::size_t>(command.text));
        if (pattern.find('{') == std::string::npos)
            return pattern;
        text_.clear();
        for (std::size_t place = 0; place < pattern.size();) {
            std::size_t open = pattern.find('{', place);
            text_.append(pattern, place, open - place);
            if (open == std::string::npos)
                break;
            std::size_t close = pattern.find('}', open);
            fill(std::string_view(pattern).substr(open + 1, close - open - 1), command, name, said);
            place = close + 1;
        }
        return text_;
    }

private:
    void fill(std::string_view field, const Command& command, std::string_view name, const std::string* said) {
        if (field == "name") {
            text_ += name;
        } else if (field == "a" || field == "b") {
            text_ += std::to_string(field == "a" ? command.a : command.b);
        } else if (field == "said") {
            say(command, said);
        } else {  // texts of the durations a and b, and of the clock time c
            text_ += duration_text(field[0] == 'a' ? command.a : field[0] == 'b' ? command.b : command.c);
        }
    }

    void say(const Command& command, const std::string* said) {
        if (said != nullptr) {
            text_ += *said;
            return;
        }
        const std::string& status = status_names_.at(static_cast<std::size_t>(command.a));
        if (command.text == AnswerText::LOAD_FAILED) {
            text_ += status;
            return;
        }
        for (char letter : status) {
            text_ += letter == '_' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
        }
    }

    std::vector<std::string> templates_;
    std::vector<std::string> status_names_;
    std::vector<std::string> reasons_;
    std::string text_;
};

}  // namespace clockwork
