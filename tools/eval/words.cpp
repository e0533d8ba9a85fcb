// The word lists, written for winnow; see words.h.
#include "eval/words.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "eval/draw.h"

namespace winnow::eval {
namespace {

constexpr std::string_view kNouns =
    "acorn address afternoon airport alcove almond anchor ankle antelope apartment apple apron arch archive argument "
    "armchair army arrow ash atlas attic aunt autumn avenue axle badge bakery balcony ballad bamboo banana banker "
    "banner barge barley barn barrel basin basket bath battery bay beach beacon bead beam bean bear beard beaver "
    "bedroom beehive bell bench berry bicycle bill birch biscuit blanket blossom boat bolt bone bonnet book boot "
    "border bottle boulder bowl bracelet branch brass bread breeze brick bride bridge broom brother brush bucket "
    "buckle building bullet bundle burrow bus butcher butter button cabbage cabin cable cactus cage cake calendar "
    "camel camera camp canal candle canoe canvas canyon cape captain caravan card carpenter carpet carriage cart "
    "castle cat cathedral cave cedar ceiling cellar cemetery chain chair chalk chapel chapter cheese cherry chess "
    "chest chestnut chicken chimney chin chisel choir church cider cinema circle citizen city clarinet clay clerk "
    "cliff clock cloud clover coach coal coast coat cobbler coconut coffee coin collar colony comb comet compass "
    "concert copper coral cork corner corridor cottage cotton couch council counter country courage cousin cow cradle "
    "crane crater crayon creek crew cricket crown crystal cup cupboard curtain cushion cyclist cypress dairy daisy "
    "dam dancer dawn deck deer delta desert desk diamond diary dice dinner ditch doctor dog doll dolphin donkey door "
    "dragon drawer dream dress drum duck dust eagle earring easel echo editor eel egg elbow elephant elm ember "
    "emerald engine envelope evening fabric factory falcon farmer feast feather fence fern ferry festival fiddle "
    "field fig finger fir fire fish flag flame flask flour flower flute fog folder forest fork fortress fountain fox "
    "frame freezer frog frost fruit funnel galaxy gallery garage garden garlic garment gate gazelle gear ghost giant "
    "ginger giraffe glacier glass globe glove goat gold goose gorge grain grape grass gravel grove guard guest guitar "
    "gull hail hallway hammer hammock harbor harness harp harvest hat hawk hay hazel hedge helmet herb heron hill "
    "hinge hive holiday honey hood hook horn horse hospital hotel house husk ice icicle igloo ink inn insect iron "
    "island ivory ivy jacket jar jasmine jaw jelly jewel journal journey judge juice jungle juniper kayak kennel "
    "kettle key kitchen kite kitten knee knife knight knot label lace ladder lagoon lake lamb lamp lantern larch lark "
    "laundry lava lawn lawyer leaf leather ledger lemon lens leopard letter library lichen lid lighthouse lily lime "
    "linen lion lizard loaf lobster lock locket locust lodge log loom lotus lumber lunch machine magnet magpie "
    "mailbox mammoth mango manor mansion maple marble market marsh mask mast match mattress meadow meal medal melody "
    "melon merchant meteor mill mine mint mirror mist mitten moat monastery monkey moon moose morning mosaic moss "
    "moth motor mountain mouse mud mule museum mushroom mustard nail napkin neck necklace needle nephew nest net "
    "nettle newspaper night nose notebook nurse nut oak oar oasis oat ocean office olive onion opera orange orchard "
    "orchid organ otter oven owl ox oyster paddle page painter palace palm pancake panda panther paper parade parcel "
    "park parrot path patio pavement peach peacock pear pearl pebble pelican pen pencil penguin pepper piano picnic "
    "picture pie pigeon pillar pillow pilot pine pipe pirate pitcher plain planet plank plate platform plough plum "
    "pocket poem poet pond pony poppy porch port potato potter prairie prince prism puddle pump pumpkin puppet purse "
    "puzzle pyramid quail quarry quarter queen quill quilt rabbit raccoon radio raft rail rain rake raven razor "
    "recipe reef reindeer ribbon rice ring river road robin rocket roof root rope rose rubber ruby rudder rug ruin "
    "sack saddle sail sailor salad salmon salt sand sandal sapphire saucer sausage scarf school scissors scooter "
    "sculptor seal seed shadow shark shawl shed sheep shelf shell shepherd shield ship shirt shoe shop shore shovel "
    "shower shrimp silk silver singer sister skate sky sled sleeve slipper snail snow soap sock sofa soil soldier "
    "soup spade sparrow spice spider spoon spring spruce square squirrel stable stair stamp star statue steam steeple "
    "stone stool storm stove stranger straw stream street string student sugar suitcase summer sunflower sunset "
    "swallow swamp swan sword syrup table tailor tangerine tapestry tea teacher telescope temple tent terrace theatre "
    "thimble thistle thorn thread throat throne thumb ticket tiger tile timber toast tomato tongue tooth torch "
    "tortoise towel tower town toy tractor train tray treasure tree trumpet trunk tulip tunnel turkey turnip turtle "
    "twig umbrella uncle valley vase vault vegetable veil velvet village vine vineyard violet violin volcano wagon "
    "waist waiter wall wallet walnut walrus wardrobe warehouse wasp watch waterfall wave weasel weaver wheat wheel "
    "whisker whistle willow window wing winter wizard wolf woodpecker wool workshop wreath wrist yacht yard zebra "
    "zipper";

constexpr std::string_view kAdjectives =
    "able abrupt absent active actual agile airy alert alive amber ample ancient angry annual anxious apt aquatic "
    "arctic ardent arid ashen awake aware awkward azure balanced bare bashful basic bent better bitter blank bleak "
    "blind blue blunt bold bony boring brave brief bright brisk brittle broad broken bronze brown bumpy busy calm "
    "candid careful careless casual cautious central certain charming cheap cheerful chilly chubby civil clean clear "
    "clever cloudy clumsy coarse cold colorful comfy common complete complex cool costly cozy cracked crafty creamy "
    "crimson crisp crooked crowded cruel cunning curious curly damaged damp daring dark dear decent deep delicate "
    "dense dim direct dirty distant dizzy double drab dreary drowsy dry dull dusty eager early earnest easy edible "
    "elastic elder elegant empty endless enormous equal even exact exotic extra faded faint fair faithful false "
    "familiar famous fancy far fast fat fearless feeble female fierce fine firm flaky flat flimsy fluffy fond foolish "
    "foreign formal fragile frail free fresh friendly frosty frozen full funny fussy fuzzy gaudy general generous "
    "gentle giddy gifted glad glossy golden good graceful grand grateful greasy great greedy green grey grim gritty "
    "grubby grumpy guilty hairy handsome handy happy hard harmless harsh hasty healthy heavy helpful hidden high "
    "hoarse hollow honest hot huge humble hungry idle ill immense innocent jagged jolly joyful juicy keen kind lame "
    "large last late lavish lazy lean lively lonely long loose loud lovely loyal lucky mad magenta magic major male "
    "maroon marvelous massive mature meager mean meek mellow merry mighty mild misty modern modest moist muddy mute "
    "mystic naive narrow nasty native neat nervous new nice nimble noble noisy normal novel numb obedient odd oily "
    "old opaque open ordinary ornate oval pale partial past patient peaceful perfect petite pink plain playful "
    "pleasant plump plush polite poor precious pretty private proper proud public pure purple quaint quick quiet "
    "quirky radiant rapid rare rash raw ready real rebel red regal remote rich rigid ripe robust rocky rosy rotten "
    "rough round royal rude rugged rural rusty sad safe salty same scarce scarlet secret selfish serene shabby shaky "
    "shallow sharp shiny short shrill shy sick silent silky silly simple sincere skinny sleepy slender slim slimy "
    "slippery slow small smart smooth snowy sober soft solemn solid somber sore sour spare sparse spiky spotted "
    "stable stale steady steep sticky stiff still stormy stout strange strict striped strong stubborn sturdy subtle "
    "sudden sunny superb sweet swift tacky tall tame tan tart tasty teal tender tense thick thin thirsty thorny tidy "
    "tight tiny tired tough tranquil tricky true twisted ugly unique unusual upset urban useful usual vacant vague "
    "vain valid vast violent vivid wandering warm wary wasteful watery weak wealthy weary weird wet white whole "
    "wicked wide wild wise witty wooden woolly worldly worn worried worthy wrong yellow young youthful zany zealous";

constexpr std::string_view kVerbs =
    "abandon absorb accept accuse achieve acquire adapt add adjust admire admit adopt advise afford agree aim allow "
    "alter amuse announce annoy answer apologize appear applaud apply appoint approve argue arise arrange arrest "
    "arrive ask assemble assist assume attach attack attend attract avoid bake bargain bathe become beg begin behave "
    "believe belong betray bite blame bleed bless blink boast boil borrow bounce bow break breathe breed build bump "
    "burn bury buy calculate call cancel carry carve catch cause celebrate challenge change charge chase chatter "
    "cheat check cheer chew choose chop claim clap climb cling close collect collide combine come comfort command "
    "compare compete complain compose conceal confess confuse connect consider consist contain continue convince cook "
    "copy correct cough count cover crack crash crawl create creep cross crush cry cure cut damage dance dare deal "
    "decay deceive decide decorate decrease defend delay delight deliver demand deny depart depend describe deserve "
    "destroy detect develop dig dine disagree disappear discover discuss dislike dive divide donate doubt drag draw "
    "drift drink drip drive drop drown earn eat educate elect embrace employ encourage end enjoy enter entertain "
    "escape examine excite excuse exist expand expect explain explode explore extend face fail fall fasten feed feel "
    "fetch fight fill find finish fit fix flee float flow fly follow forbid forget forgive form freeze fry gain "
    "gather gaze give glow glue go govern grab greet grin grind grip grow guess guide handle hang happen harm hate "
    "haunt heal heap hear heat help hesitate hide hit hold hope hover hug hum hunt hurry hurt identify ignore imagine "
    "impress improve include increase inform inject injure inspect instruct intend interrupt introduce invent invite "
    "irritate itch join joke jump justify keep kick kill kiss kneel knit knock know launch lead lean leap learn leave "
    "lend let lick lie lift like listen live load look lose love make manage march marry matter measure meet melt "
    "mend mention mix moan mourn move multiply murder nod note notice obey object observe obtain occur offend offer "
    "open order overflow owe own pack paint pause pay peel perform permit persuade phone pick pinch place plan plant "
    "play plead please plug point poke polish possess pour practice praise pray preach prefer prepare present "
    "preserve press pretend prevent print produce promise protect prove provide pull punch punish push put question "
    "quit race raise reach read realize receive recognize record reduce reflect refuse regret reject rejoice relax "
    "release rely remain remember remind remove repair repeat replace reply report request require rescue rest retire "
    "return reveal ride rinse rise risk roar roll rub run rush sail satisfy save say scare scatter scold scrape "
    "scratch scream scrub search see seek seem sell send separate serve settle sew shake share shave shelter shine "
    "shiver shoot shout show shrink shut sigh sign sing sink sit skip sleep slide slip smell smile smoke snatch "
    "sneeze sniff snore soak solve speak spell spend spill spin spit split spoil spray spread squeak squeeze stain "
    "stand stare start stay steal steer step stir stitch stop store strike strip stroke study succeed suffer suggest "
    "supply support suppose surprise surround suspect suspend swear sweep swell swim swing switch take talk tame tap "
    "taste teach tear tease tell tempt terrify thank think throw tickle tie touch tour trade trap travel treat "
    "tremble trick trot trust try tumble turn twist understand undress unite unlock use vanish visit wait wake walk "
    "wander want warn wash waste wear weave weep weigh welcome whisper win wipe wish wonder work worry wrap wreck "
    "wrestle write yawn yell zoom";

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    words.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

/// Two to four syllables.
std::string made_up_word(Draw& draw) {
  static const std::vector<std::string> kStarts = {"b", "br", "d",  "dr", "f",  "fl", "g", "gr", "h",
                                                   "j", "k",  "kl", "l",  "m",  "n",  "p", "pl", "r",
                                                   "s", "sk", "st", "t",  "tr", "v",  "w", "z"};
  static const std::vector<std::string> kVowels = {"a", "e", "i", "o", "u", "ai", "ea", "oo"};
  static const std::vector<std::string> kEnds = {"", "", "", "l", "m", "n", "nd", "r", "rk", "s", "st", "t"};
  std::string word;
  for (int64_t n = draw.between(2, 4); n > 0; --n) {
    word += draw.choice(kStarts) + draw.choice(kVowels) + (n == 1 ? draw.choice(kEnds) : "");
  }
  return word;
}

}  // namespace

const std::vector<std::string>& nouns() {
  static const std::vector<std::string> kList = split(kNouns);
  return kList;
}

const std::vector<std::string>& adjectives() {
  static const std::vector<std::string> kList = split(kAdjectives);
  return kList;
}

const std::vector<std::string>& verbs() {
  static const std::vector<std::string> kList = split(kVerbs);
  return kList;
}

const std::vector<std::string>& pair_words() {
  static const std::vector<std::string> kPairs = [] {
    std::vector<std::string> pairs;
    for (const std::string& adjective : adjectives()) {
      for (const std::string& noun : nouns()) pairs.push_back(fmt::format("{}-{}", adjective, noun));
    }
    std::sort(pairs.begin(), pairs.end());
    return pairs;
  }();
  return kPairs;
}

std::vector<std::string> distinct_words(size_t n) {
  static const std::vector<std::string> kReal = [] {
    std::set<std::string> all(nouns().begin(), nouns().end());
    all.insert(adjectives().begin(), adjectives().end());
    all.insert(verbs().begin(), verbs().end());
    std::vector<std::string> words(all.begin(), all.end());
    Draw draw(42);
    draw.shuffle(words);
    return words;
  }();
  std::vector<std::string> words(kReal.begin(), kReal.begin() + static_cast<std::ptrdiff_t>(std::min(n, kReal.size())));
  if (words.size() == n) return words;
  std::set<std::string> seen(words.begin(), words.end());
  Draw draw(43);
  while (words.size() < n) {
    std::string word = made_up_word(draw);
    if (seen.insert(word).second) words.push_back(std::move(word));
  }
  return words;
}

}  // namespace winnow::eval
