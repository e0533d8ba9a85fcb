// Prose for haystacks. RULER and the needle test hide needles in essays of a living author; those texts cannot be
// shipped, so winnow's essays are its own: sentences put together from phrases, ever different, about nothing that
// anybody will ask for. Scores on them compare with each other, not with published ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace winnow::eval {

/// The first `n_words` words as sentences; the last may be cut off in the middle. Always the same text.
std::vector<std::string> essay_sentences(int64_t n_words);

/// The same from another beginning: text for `seed`.
std::vector<std::string> essay_sentences(int64_t n_words, uint64_t seed);

}  // namespace winnow::eval
