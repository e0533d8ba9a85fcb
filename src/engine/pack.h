// Which prompts of a batch share a row of work (prepacking: Zhao et al., "Prepacking: A Simple Method for Fast
// Prefilling and Increased Throughput in Large Language Models", arXiv 2404.09529).
//
// Idea: instead of padding a batch to its longest prompt, several prompts stand one after another in a row of work,
// their positions start anew with each, and no prompt sees another's. The paper needs rows of equal width and a
// block-diagonal mask. Here a row of work is a plain list of rows: the products of a layer (norm, q k v, output,
// feed-forward) run over all of them, and attention is called for each prompt over its own cache, which is where its
// keys and values are written at once. So nothing is padded, masked or cut apart afterwards, and what bins remain for
// is memory: a bin bounds the rows that are held at one time. Deviations: all tokens of a prompt are packed and logits
// are taken at its end; the reference holds the last token back for a first decode step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace winnow {

/// Best fit, longest first: each prompt goes into the fullest bin that still has room for it, or opens one; of equal
/// lengths the earlier comes first. -> prompts' indices by bin; a prompt longer than `capacity` has a bin of its own.
std::vector<std::vector<int32_t>> pack_prompts(std::span<const int64_t> lengths, int64_t capacity);

}  // namespace winnow
