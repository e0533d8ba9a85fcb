// Models of a known shape with random weights and planted attention: for measuring speed where there is no model file.
//
// Plain random weights would not do. Their attention is flat, and methods that look at it choose what no text makes
// them choose. Here attention is built, within the layers of Qwen 2 (Llama's, with biases on q, k and v), from what
// heads of trained models show: first tokens that gather mass, columns that all queries look at, a local band,
// diagonals at certain distances, noise; and some heads without any of it.
//
// Let D be the head's size, P = D / 2 RoPE pairs as complex numbers, theta_i the angle of pair i per position. A query
// at position m and a key at n have the logit
//     1/sqrt(D) * sum_i Re(Q_i conj(K_i) e^(j theta_i (m - n)))
// where Q_i, K_i are bias plus W norm(x), before RoPE.
//
// Peaks at distances: the biases of keys are K_i = kKeyBias, those of queries
//     Q_i = sqrt(D) / kKeyBias * sum_c height_c weight_c,i e^(-j theta_i distance_c),     sum_i weight_c,i = 1,
// so that peak c has the logit height_c * sum_i weight_c,i cos(theta_i (m - n - distance_c)): height_c at its distance
// and less by about height_c / ln(highest / lowest theta) for each e-fold away from it. Peak 0, the band, has distance
// 0 and equal weights on 1/1024 <= theta <= 1; diagonals have theirs on 1/2048 <= theta <= 1/8, so that one is some
// twenty keys wide to each side. Far from it the cosines of each add up to a ripple of deviation 1 to 2.
//
// Sinks and columns: the last two pairs hardly turn (rope_freqs.weight slows them down, so that what they hold is seen
// from any distance up to the context's end) and hold nothing but what is planted. u_0, u_1, u_2 are random vectors of
// signs; embeddings have kPlanted * u_0 added for token 0 and kPlanted * (u_1 cos a + u_2 sin a), a = 2 pi id / 15, for
// tokens 1 to 15. W_k maps u_0 to kKeyPlanted in the last pair, u_1 and u_2 to its two halves in the last but one. The
// query's bias there gives the logit `sink` to token 0 and `column` * cos(a - angle) to the others: each head has its
// own favourites among them.
//
// Noise: W_q and W_k are random with outputs of deviation kNoise, which adds logits of deviation 0.7 (flat heads) to
// 1.5. All the other matrices keep unit activations at unit size; embeddings are 8 * n_layer times larger, so that what
// layers add changes the residual stream, and with it the planted directions, by at most a quarter.
//
// Head by head, from a generator seeded by layer and head (heads of a group share their keys; uniform draws):
//     5 of 6 heads: band 8 to 13, sink 7 to 14; column 7 to 11 in every second one; in every third one two or three
//     diagonals of 9 to 12 at distances from 100 to 8000, log-uniform. At 8K and 32K tokens 93 and 89 % of a row's mass
//     lie in what is planted, and 90 % of it in 2 to 3 % of the keys.
//     1 of 6 is flat: band 2 to 5, sink 2 to 6, nothing else.
// Chosen so that methods compute about what they compute in a trained model of the same shape: at 8K tokens
// flexprefill 33 % and minference 43 % in qwen2.5-0.5b's; in Qwen2.5-Coder-0.5B on a text 29 and 41 %.
//
// What is left out: the vocabulary is 4096 tokens, whatever the shape's own is, so logits are cheaper than the model's;
// there is no tokenizer. Layers share matrices where all of them apart would be more than 256 MB, but each names
// its own: a device that keeps weights keeps them all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace winnow {

struct SyntheticShape {
  std::string_view name;
  int32_t n_layer = 0, n_embd = 0, n_head = 0, n_head_kv = 0, head_dim = 0, n_ff = 0;
  float rope_base = 0;
};

/// The shapes that have a name.
std::span<const SyntheticShape> synthetic_shapes();

/// The shape as a GGUF file of architecture qwen2, weights in q8_0, for contexts of up to 4M tokens; its name is
/// "NAME (random weights)". n_embd, n_ff and n_head * head_dim must be multiples of 32. Equal shapes give equal bytes.
std::vector<std::byte> synthetic_gguf(const SyntheticShape& shape);

/// A prompt for such a model, the same on every call (a shorter one is the beginning of a longer): four sinks, then
/// random tokens, among them 1 in 256 of the planted columns, in clusters: one in 2048 tokens begins a run of 32, in
/// which one in four is planted.
std::vector<int32_t> synthetic_tokens(int64_t n);

/// What is planted in one query head. Heights and strengths are logits.
struct SyntheticHead {
  struct Peak {
    int32_t distance = 0;
    float height = 0;
  };
  bool flat = false;
  Peak band;  // distance 0
  std::vector<Peak> diagonals;
  float sink = 0;
  float column = 0, angle = 0;
};
SyntheticHead synthetic_head(int32_t layer, int32_t head);

/// The RoPE angle of each pair per position, as the model file asks for it. -> [head_dim / 2]
std::vector<double> synthetic_frequencies(const SyntheticShape& shape);

/// Logit that biases alone give a key `distance` positions before the query; without sinks and columns.
double synthetic_logit(const SyntheticShape& shape, const SyntheticHead& head, int64_t distance);

}  // namespace winnow
