// Words for prompts. RULER draws from the lists of the package wonderwords and, where these are too short, from a file
// of English words; winnow brings lists of its own (words.cpp), and after them made-up words that can be spoken.
#pragma once

#include <string>
#include <vector>

namespace winnow::eval {

const std::vector<std::string>& nouns();  // each sorted, without repeats
const std::vector<std::string>& adjectives();
const std::vector<std::string>& verbs();

/// "adjective-noun" for every pair, sorted: the keys and values of needles.
const std::vector<std::string>& pair_words();

/// The first `n` of a sequence of distinct words: nouns, adjectives and verbs in an order that is shuffled once, then
/// made-up words.
std::vector<std::string> distinct_words(size_t n);

}  // namespace winnow::eval
