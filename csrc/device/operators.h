/* Operators of the domain "clockwork", which take strings: what a model's own strings become before it sees numbers.
 *
 *   DecodeJpeg   strings[N] -> uint8[N, height, width, channels]: each string a JPEG image (device/images.h)
 *   WordPiece    strings[N] -> ids, mask, types int64[N, length]: each string a text (device/wordpiece.h)
 *   BytePairs    likewise (device/byte_pairs.h)
 *
 * What is wrong with a string is an error of the execution whose text has INPUT_MARK before the sentence for people.
 */
#ifndef CLOCKWORK_OPERATORS_H
#define CLOCKWORK_OPERATORS_H

#include <atomic>

#include "device/ort_api.h"

#define INPUT_MARK "[input] "

namespace clockwork::device {

// Operators that run on this thread end with an error as soon as this is set. It must outlive the thread. Null: never.
void end_operators_with(const std::atomic<bool>* ending);

}  // namespace clockwork::device

/* Tell ONNX Runtime of the operators. By this name it looks for them in a library of custom operators. */
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base);

#endif
