#include "eval/essay.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "eval/draw.h"

namespace winnow::eval {
namespace {

using Phrases = std::vector<std::string_view>;

const Phrases kPatterns = {
    "{When}, {who} {did} {what} {place}.",
    "{Who} {did} {what}, {why}.",
    "{Opinion} that {who} {did} {what} {when}.",
    "{Thing} {place} {state}, and {who} {noticed}.",
    "It took {who} {span} to see that {claim}.",
    "{Who} once wrote that {claim}, {but}.",
    "{When}, {place}, {thing} {state}.",
    "If {claim}, then {claim}.",
    "{Most} believe that {claim}; {who} {did} {what} all the same.",
    "There is a difference between {idea} and {idea}, {but}.",
    "{Who} asked {who} about {idea}, {why}.",
    "What begins as {idea} often ends as {idea}.",
    "{Opinion} that {claim}, {why}.",
    "{When}, {who} and {who} {did} {what} {place}, {but}.",
    "{Thing} {state} for {span}, {why}.",
    "Nothing teaches {idea} so well as {idea}.",
    "{Who} {did} {what}; {who} {noticed}.",
    "After {span}, {thing} {place} {state}.",
    "The first rule of {idea} is that {claim}.",
    "{Most} who talk about {idea} have never {past} {what}.",
    "{When}, {claim}, or so {who} told {who}.",
    "I have met {who}, and {opinion} that {claim}.",
};

const std::map<std::string_view, Phrases> kSlots = {
    {"who",
     {"the harbour master",
      "a retired surveyor",
      "the youngest of the brothers",
      "my neighbour",
      "the editor",
      "an old teacher of mine",
      "the woman who kept the mill",
      "a travelling clockmaker",
      "the town clerk",
      "the second engineer",
      "a student of law",
      "the baker's daughter",
      "the new librarian",
      "a friend from the coast",
      "the man with the ladder",
      "our landlord",
      "the quiet programmer",
      "a botanist",
      "the ferry's cook",
      "the founder of the company",
      "the chairman",
      "a painter of signs",
      "the widow upstairs",
      "the apprentice",
      "the night guard",
      "an honest accountant",
      "the mayor",
      "a translator",
      "the last tenant",
      "the gardener"}},
    {"did", {"repaired",         "gave away",    "refused to sell",
             "described",        "measured",     "borrowed",
             "carried home",     "rebuilt",      "forgot about",
             "looked after",     "wrote down",   "painted over",
             "quietly replaced", "explained",    "counted",
             "tried to improve", "argued about", "took apart",
             "learned to like",  "hid",          "sold",
             "examined",         "praised",      "waited for",
             "drew a map of"}},
    {"past",
     {"repaired", "given away", "described", "measured", "borrowed", "rebuilt", "written down", "explained", "counted",
      "improved", "taken apart", "examined", "waited for"}},
    {"what",
     {"the broken telescope",
      "a box of letters",
      "the oldest of the boats",
      "a plan for the bridge",
      "half of the orchard",
      "the tax on salt",
      "a small machine for sorting seeds",
      "the accounts of the year",
      "an unfinished novel",
      "the stone wall",
      "a program nobody used",
      "the winter supplies",
      "a list of questions",
      "the church bell",
      "the map of the district",
      "three barrels of tar",
      "a theory of prices",
      "the wrong key",
      "a good pair of boots",
      "the lease",
      "a drawer full of lenses",
      "the town's only press",
      "a proof with one gap",
      "the recipe",
      "a very long report",
      "the roof of the barn",
      "somebody else's umbrella",
      "the index of the library"}},
    {"place",
     {"behind the station",  "near the old quarry",      "on the island",           "at the end of the pier",
      "in the upper town",   "beside the canal",         "in a rented room",        "under the arches",
      "at the market",       "across the valley",        "in the back of the shop", "by the northern gate",
      "on the third floor",  "in the garden of the inn", "along the towpath",       "outside the city",
      "in the reading room", "at the crossroads",        "above the stable",        "in the shade of the elms"}},
    {"when",
     {"in the second winter", "that same evening", "before the railway came", "one morning in spring",
      "during the long strike", "a week later", "when the river was low", "on the day of the fair", "after the war",
      "in those years", "at the end of the month", "long before anybody asked", "during the flood",
      "in the year of the comet", "every autumn", "around noon", "late in the century", "by the time of the harvest"}},
    {"why",
     {"because nobody else would do it", "since paper was dear that year", "mostly out of habit",
      "which surprised everybody but the children", "as if time cost nothing", "because it was the only way to learn",
      "for reasons that the records do not give", "which is how such things usually go",
      "since the alternative was to do nothing", "because the first attempt had failed",
      "with more patience than skill", "in order to save a few coins", "because a promise had been made",
      "as the law then required", "which nobody has explained since", "for the pleasure of it"}},
    {"but",
     {"but few people listened", "though the evidence is thin", "and later came to regret it",
      "but that was not the point", "although the price had doubled", "and that settled the matter",
      "but the habit stayed", "and nobody minded", "though it rained all week", "and it still works today",
      "but only after a long quarrel", "and the neighbours agreed", "though the letter was never sent",
      "but memory is a poor witness"}},
    {"opinion",
     {"it is not surprising", "I used to doubt", "the records suggest", "it turned out", "everybody agrees",
      "it is often said", "I think it matters", "the strange thing is", "the newspaper reported",
      "it took me years to accept", "one of the letters mentions", "it seems likely", "we tend to forget",
      "it can be shown"}},
    {"thing",
     {"the lamp",         "a row of poplars", "the wooden staircase", "the smell of coal", "the ledger",
      "an empty cart",    "the weather vane", "a pile of bricks",     "the second clock",  "the notice on the door",
      "a flock of geese", "the harbour wall", "the narrow window",    "an iron stove",     "the signal",
      "the path",         "the well",         "a blue curtain",       "the scaffold",      "the reading desk"}},
    {"state",
     {"stood where it had always been", "was gone by the evening", "looked smaller than before",
      "needed a coat of paint", "kept everybody awake", "could be seen from the road", "had been there since the fire",
      "was worth more than it cost", "belonged to nobody in particular", "was repaired twice",
      "gave the street its name", "did not fit the drawing", "stayed dry", "leaned a little to the left",
      "was the talk of the town", "was left unfinished"}},
    {"noticed",
     {"was the first to notice", "said nothing", "took a note of it", "laughed", "pretended not to see",
      "came back to look again", "wanted to know the reason", "paid for it", "asked for a second opinion",
      "went home early", "changed the subject", "kept a copy"}},
    {"span",
     {"a whole summer", "eleven years", "most of a day", "three meetings", "the better part of a decade",
      "two long letters", "forty minutes", "several attempts", "a month of bad weather", "one sleepless night",
      "half a lifetime", "the length of a journey"}},
    {"claim",
     {"small tools change large habits",
      "the cheapest material lasts longest",
      "work expands when nobody counts the hours",
      "a good question is worth a season of answers",
      "people keep what they have made themselves",
      "the shortest road is rarely the fastest",
      "every repair teaches something about the maker",
      "nobody reads the second page",
      "a town is known by its bridges",
      "most quarrels are about words",
      "the young overestimate a year and underestimate ten",
      "silence is also a reply",
      "machines are patient and people are not",
      "the best ideas look like toys at first",
      "a debt remembered is half repaid",
      "what can be measured will be argued about",
      "good maps leave things out",
      "the weather decides more than councils do",
      "simple rules survive their authors",
      "a habit is a decision made once",
      "things that are easy to copy are hard to own",
      "the crowd is right about the past"}},
    {"most",
     {"most people", "many travellers", "the older books", "nearly all investors", "those who were there",
      "the engineers of that time", "most of my friends", "few historians"}},
    {"idea",
     {"patience",
      "the price of attention",
      "good taste",
      "the fear of being late",
      "curiosity",
      "borrowed money",
      "the habit of writing things down",
      "luck",
      "craft",
      "a reputation",
      "the wish to be useful",
      "thrift",
      "ambition",
      "an honest mistake",
      "the art of waiting",
      "loyalty",
      "a useful lie",
      "common sense",
      "the love of detail",
      "a bad bargain",
      "authority",
      "the comfort of routine"}},
};

char upper(char c) {
  return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

/// A pattern with its slots filled; a slot named with a capital begins with one.
std::string sentence(Draw& draw) {
  const std::string_view pattern = draw.choice(kPatterns);
  std::string text;
  for (size_t at = 0; at < pattern.size(); ++at) {
    if (pattern[at] != '{') {
      text += pattern[at];
      continue;
    }
    const size_t end = pattern.find('}', at);
    std::string name(pattern.substr(at + 1, end - at - 1));
    const bool capital = lower(name.front()) != name.front();
    name.front() = lower(name.front());
    std::string phrase(draw.choice(kSlots.at(name)));
    if (capital) phrase.front() = upper(phrase.front());
    text += phrase;
    at = end;
  }
  return text;
}

int64_t count_words(std::string_view text) {
  return std::count(text.begin(), text.end(), ' ') + 1;
}

std::string first_words(const std::string& text, int64_t n) {
  size_t end = 0;
  for (; n > 0 && end != std::string::npos; --n) end = text.find(' ', end + 1);
  return text.substr(0, end);
}

}  // namespace

std::vector<std::string> essay_sentences(int64_t n_words) {
  constexpr uint64_t kOurs = 20260801;
  return essay_sentences(n_words, kOurs);
}

std::vector<std::string> essay_sentences(int64_t n_words, uint64_t seed) {
  Draw draw(seed);
  std::vector<std::string> sentences;
  for (int64_t n = 0; n < n_words;) {
    sentences.push_back(sentence(draw));
    n += count_words(sentences.back());
    if (n > n_words) sentences.back() = first_words(sentences.back(), count_words(sentences.back()) - (n - n_words));
  }
  return sentences;
}

}  // namespace winnow::eval
