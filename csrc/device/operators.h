/* Operators of the domain "clockwork": they convert the strings of a model's inputs to numbers.
 *
 *   DecodeJpeg   strings[N] -> uint8[N, height, width, channels]: each string a JPEG image (device/images.h)
 *   WordPiece    strings[N] -> ids, mask, types int64[N, length]: each string a text (device/wordpiece.h)
 *   BytePairs    the same by byte-pair encoding (device/byte_pairs.h)
 *
 * A wrong string fails the execution; the error's text has INPUT_MARK before the sentence for people.
 */
#ifndef CLOCKWORK_OPERATORS_H
#define CLOCKWORK_OPERATORS_H

#include <atomic>

#include "device/ort_api.h"

#define INPUT_MARK "[input] "

namespace clockwork::device {

// Sets the flag at which operators on this thread end with an error. The flag must outlive the thread. Null:
// no flag.
void end_operators_with(const std::atomic<bool>* ending);

}  // namespace clockwork::device

/* Registers the operators with ONNX Runtime, which looks up this name in a library of custom operators. */
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base);

#endif
