#include "eval/results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "eval/user_task.h"

namespace winnow::eval {
namespace {

using testing::HasSubstr;

class Results : public testing::Test {
 protected:
  Results() {
    folder_ = std::filesystem::temp_directory_path() / ("winnow-results-" + std::to_string(::getpid()) +
                                                        testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  ~Results() override { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_ / "samples.jsonl"; }
  void write(const std::string& text) const { std::ofstream(path()) << text; }
  std::string read() const {
    std::ifstream file(path());
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::string refusal(const std::function<void()>& act) const {
    try {
      act();
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was refused";
  }

  std::filesystem::path folder_;
  const Json line_ = {{"task", "vt"}, {"length", 4096}, {"index", 3}, {"method", "dense"}, {"score", 0.5}};
};

TEST_F(Results, AddsAndReads) {
  EXPECT_TRUE(read_samples(path()).empty());
  SampleFile(path()).add(line_);
  {
    SampleFile file(path());
    file.add(line_);
  }
  const std::vector<Json> lines = read_samples(path());
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[1], line_);
  EXPECT_EQ(key_of(lines[0]), (Key{"vt", 4096, 3, "dense"}));
}

TEST_F(Results, DropsAnUnfinishedLastLine) {
  const std::string whole = line_.dump() + "\n";
  write(whole + whole.substr(0, 20));
  EXPECT_EQ(read_samples(path()).size(), 1U);
  SampleFile(path()).add(line_);
  EXPECT_EQ(read(), whole + whole);
  write(whole.substr(0, 20));
  SampleFile(path()).add(line_);
  EXPECT_EQ(read(), whole);
}

TEST_F(Results, RefusesWhatIsNoResult) {
  write(line_.dump() + "\n{\"task\": 1}\n");
  EXPECT_THAT(refusal([&] { read_samples(path()); }), HasSubstr("line 2 is no result"));
}

TEST_F(Results, RefusesASecondWriter) {
  const SampleFile file(path());
  EXPECT_THAT(refusal([&] { SampleFile second(path()); }), HasSubstr("another winnow eval"));
}

TEST_F(Results, AFullDiskIsASentence) {
  std::filesystem::create_symlink("/dev/full", path());
  EXPECT_TRUE(read_samples(path()).empty());
  SampleFile file(path());
  EXPECT_THAT(
      refusal([&] { file.add(line_); }),
      testing::AllOf(HasSubstr("samples.jsonl: writing failed: No space left on device"), HasSubstr("are kept")));
}

TEST_F(Results, UserTasks) {
  const std::vector<Sample> samples = parse_user_task("own.jsonl", R"({"input": "1+1=", "outputs": "2"}

{"input": "long text", "question": "\nWho?", "outputs": ["a", "b"], "metric": "any", "answer_prefix": " It is", "n_gen": 5}
)");
  ASSERT_EQ(samples.size(), 2U);
  EXPECT_EQ(samples[0].metric, "all");
  EXPECT_EQ(samples[0].n_gen, 64);
  EXPECT_EQ(samples[1].input(), "long text\nWho?");
  EXPECT_EQ(samples[1].outputs, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(make_user_task(samples)->sample(1).answer_prefix, " It is");
  const auto refused = [&](const std::string& text) {
    return refusal([&] { parse_user_task("own.jsonl", "{\"input\": \"x\", \"outputs\": \"y\"}\n" + text); });
  };
  EXPECT_THAT(refused("nonsense"), HasSubstr("own.jsonl, line 2: this is no JSON object"));
  EXPECT_THAT(refused(R"({"input": "x"})"), HasSubstr("line 2: \"outputs\" is missing"));
  EXPECT_THAT(refused(R"({"outputs": "x"})"), HasSubstr("line 2: \"input\" is missing"));
  EXPECT_THAT(refused(R"({"input": "x", "outputs": [1]})"), HasSubstr("must be a text or a list of texts"));
  EXPECT_THAT(refused(R"({"input": "x", "outputs": "y", "metric": "bleu"})"), HasSubstr("line 2: there is no metric"));
  EXPECT_THAT(refused(R"({"input": "x", "outputs": "y", "n_gen": 0})"), HasSubstr("\"n_gen\" is 0"));
  EXPECT_THAT(refused(R"({"input": "x", "outputs": "y", "extra": 0})"), HasSubstr("\"extra\" is not known"));
  EXPECT_THAT(refusal([&] { parse_user_task("own.jsonl", "\n"); }), HasSubstr("the file has no samples"));
}

}  // namespace
}  // namespace winnow::eval
