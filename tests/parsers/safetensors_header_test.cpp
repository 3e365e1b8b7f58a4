#include "sigma/io/safetensors_header.h"

#include <gtest/gtest.h>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using namespace std::string_literals;

std::string length_bytes(uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i));
  return bytes;
}

SafetensorsHeader parse(const std::string& file) {
  const uint64_t length = safetensors_header_length(file.substr(0, 8), file.size());
  return parse_safetensors_header(std::string_view(file).substr(8, length), file.size());
}

std::string file_of(const std::string& json, size_t body = 0) {
  return length_bytes(json.size()) + json + std::string(body, '\0');
}

std::string reason(const std::string& file) {
  try {
    parse(file);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    return error.what();
  }
  return "accepted";
}

/// The rule, the tensor, and the case.
void expect(const std::string& rule, const std::string& tensor, const std::string& file) {
  const std::string text = reason(file);
  EXPECT_TRUE(text.starts_with(rule + ": ")) << rule << " expected: " << text;
  if (!tensor.empty()) EXPECT_NE(text.find("tensor \"" + tensor + "\""), std::string::npos) << text;
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets +
         "]}";
}
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"x":)" + entry(dtype, shape, offsets) + "}";
}

TEST(Header, AcceptsTheWholeFormat) {
  EXPECT_TRUE(parse(file_of("{}")).entries.empty());
  EXPECT_TRUE(parse(file_of(" \t\r\n{ } \n")).entries.empty());
  const SafetensorsHeader h = parse(file_of(
      R"({"__metadata__":{"k\u00e9\ud83d\ude00":"\n\\\/\""},"b":)" + entry("F32", "", "0,4") +
          R"(, "é" : {"shape" : [ 2 , 0 ], "data_offsets" : [ 4 , 4 ], "dtype" : "I64" },"c":)" +
          entry("F4", "2,3", "4,7") + "}  ",
      7));
  ASSERT_EQ(h.entries.size(), 3u);
  EXPECT_EQ(h.entries[0].name, "b");
  EXPECT_EQ(h.entries[1].name, "é");
  EXPECT_EQ(h.entries[1].shape, (std::vector<uint64_t>{2, 0}));
  EXPECT_EQ(h.entries[2].dtype, "F4");
  EXPECT_EQ(h.metadata.at("ké😀"), "\n\\/\"");
  EXPECT_EQ(reason(file_of(one("U8", "0,9223372036854775807", "0,0"))), "accepted");
}

TEST(Header, Rule1To3Length) {
  expect("HeaderTooSmall", "", "");
  expect("HeaderTooSmall", "", "1234567");
  expect("HeaderTooLarge", "", length_bytes(100'000'001));
  expect("HeaderTooLarge", "", "\x3c\x00\x00\x00\x00\xff\xff\xff{}"s);
  expect("HeaderTooLarge", "", std::string(8, '\xff') + "{}");  // 8 + N wraps
  expect("HeaderTooLarge", "", length_bytes(~uint64_t{0} - 7) + "{}");
  expect("InvalidHeaderLength", "", length_bytes(100'000'000));
  expect("InvalidHeaderLength", "", length_bytes(3) + "{}");
}

TEST(Header, Rule4Utf8) {
  for (const char* bytes : {"\xff", "\x80", "\xc0\xaf", "\xc1\x81", "\xe0\x80\xaf", "\xed\xa0\x80",
                            "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82"})
    expect("InvalidHeader", "", file_of("{\"" + std::string(bytes) + "\":1}"));
  expect("InvalidHeader", "", file_of("{}\xe2"));
}

TEST(Header, Rule5Json) {
  const std::string good = entry("U8", "1", "0,1");
  const std::pair<const char*, std::string> cases[] = {
      {"", ""},
      {"", " "},
      {"", "[]"},
      {"", "null"},
      {"", "\"x\""},
      {"", "{"},
      {"", "{\"x\""},
      {"", "{\"x"},
      {"", "{\"x\":}"},
      {"", "{,}"},
      {"", "{x:1}"},
      {"", "{}x"},
      {"", "{}{}"},
      {"", "{}\0"s},
      {"", "{}\0junk"s},
      {"", "{\0}"s},
      {"", "\xEF\xBB\xBF{}"},
      {"", "\x0B{}"},
      {"", "{\"x\":" + good + ",}"},
      {"", "{\"a\tb\":" + good + "}"},
      {"", "{\"\\x\":" + good + "}"},
      {"", "{\"\\u12\":" + good + "}"},
      {"", "{\"\\ud800\":" + good + "}"},
      {"", "{\"\\ud800\\u0041\":" + good + "}"},
      {"", "{\"\\udc00\":" + good + "}"},
      {"x", "{\"x\":1}"},
      {"x", "{\"x\":null}"},
      {"x", "{\"x\":{}}"},
      {"x", "{\"x\":[\"U8\",[1],[0,1]]}"},
      {"x", one("F31", "1", "0,1")},
      {"x", one("u8", "1", "0,1")},
      {"x", R"({"x":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})"},
      {"x", R"({"x":{"shape":[1],"data_offsets":[0,1]}})"},
      {"x", R"({"x":{"dtype":"U8","data_offsets":[0,1]}})"},
      {"x", R"({"x":{"dtype":"U8","shape":[1]}})"},
      {"x", R"({"x":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})"},
      {"x", R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}})"},
      {"x", R"({"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})"},
      {"x", one("U8", "-1", "0,1")},
      {"x", one("U8", "-0", "0,1")},
      {"x", one("U8", "1.0", "0,1")},
      {"x", one("U8", "1e0", "0,1")},
      {"x", one("U8", "+1", "0,1")},
      {"x", one("U8", "01", "0,1")},
      {"x", one("U8", "1,", "0,1")},
      {"x", one("U8", "\"1\"", "0,1")},
      {"x", one("U8", "[1]", "0,1")},
      {"x", one("U8", "[[[[[[1]]]]]]", "0,1")},
      {"x", one("U8", "NaN", "0,1")},
      {"x", one("U8", "18446744073709551616", "0,1")},
      {"x", one("U8", "99999999999999999999999", "0,1")},
      {"x", one("U8", "1", "")},
      {"x", one("U8", "1", "0")},
      {"x", one("U8", "1", "0,1,2")},
      {"x", one("U8", "1", "0,1e2")},
      {"x", one("U8", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "0,1")},  // 17 dimensions
      {"", "{\"\":" + good + "}"},
      {"", "{\"" + std::string(1025, 'n') + "\":" + good + "}"},
      {"", "{\"a\\u0000b\":" + good + "}"},
      {"", "{\"x\":" + good + ",\"x\":" + good + "}"},
      {"", "{\"x\":" + good + ",\"\\u0078\":" + good + "}"},
      {"", R"({"__metadata__":null})"},
      {"", R"({"__metadata__":[]})"},
      {"", R"({"__metadata__":{"a":1}})"},
      {"", R"({"__metadata__":{"a":{"b":"c"}}})"},
      {"", R"({"__metadata__":{"a":"1","a":"2"}})"},
      {"", R"({"__metadata__":{},"__metadata__":{}})"},
  };
  for (const auto& [tensor, json] : cases) {
    SCOPED_TRACE(json);
    expect("InvalidHeaderDeserialization", tensor, file_of(json, 1));
  }
  expect("InvalidHeaderDeserialization", "", file_of(std::string(100'000, '[')));
  expect("InvalidHeaderDeserialization", "x", file_of("{\"x\":" + std::string(100'000, '{')));
}

TEST(Header, LimitOfTensors) {
  std::string json = "{";
  for (int i = 0; i <= 1 << 20; ++i) {
    if (i > 0) json += ',';
    json += '"' + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  EXPECT_NE(reason(file_of(json + "}")).find("2^20"), std::string::npos);
}

TEST(Header, Rule6Offsets) {
  const auto two = [](const char* first, const char* second) {
    return file_of("{\"a\":" + entry("U8", "4", first) + ",\"b\":" + entry("U8", "4", second) + "}",
                   8);
  };
  EXPECT_EQ(reason(two("0,4", "4,8")), "accepted");
  EXPECT_EQ(reason(two("4,8", "0,4")), "accepted");
  expect("InvalidOffset", "b", two("0,4", "5,9"));  // hole
  expect("InvalidOffset", "b", two("0,4", "3,7"));  // overlap
  expect("InvalidOffset", "b", two("0,4", "0,4"));  // alias
  expect("InvalidOffset", "a", two("1,5", "5,9"));  // does not start at 0
  expect("InvalidOffset", "b", two("0,4", "4,3"));  // backwards
  std::string ten = "{";
  for (int i = 0; i < 10; ++i)
    ten += fmt::format(R"({}"weight_{}":{})", i == 0 ? "" : ",", i, entry("I32", "2,2", "0,16"));
  expect("InvalidOffset", "weight_1", file_of(ten + "}", 16));
  expect("InvalidOffset", "x",
         file_of(one("U8", "4", "18446744073709551612,18446744073709551615")));
}

TEST(Header, Rule7To9Sizes) {
  for (const char* shape :
       {"2,18446744073709551614", "2,9223372036854775807", "4294967296,4294967296",
        "4294967296,4294967296,0", "0,9223372036854775808", "2305843009213693952"})
    expect("ValidationOverflow", "x", file_of(one("I32", shape, "0,16"), 16));
  expect("MisalignedSlice", "x", file_of(one("F4", "1,3", "0,2"), 2));
  expect("MisalignedSlice", "x", file_of(one("F6_E2M3", "3", "0,3"), 3));
  expect("TensorInvalidInfo", "x", file_of(one("F32", "2", "0,4"), 4));
  expect("TensorInvalidInfo", "x", file_of(one("F32", "2", "0,9"), 9));
  expect("TensorInvalidInfo", "x", file_of(one("U8", "0", "0,4"), 4));
  expect("TensorInvalidInfo", "x", file_of(one("F32", "", "0,0")));
}

TEST(Header, Rule10Buffer) {
  expect("MetadataIncompleteBuffer", "", file_of(one("F32", "2", "0,8"), 6));  // 2 short
  expect("MetadataIncompleteBuffer", "", file_of(one("F32", "2", "0,8"), 9));  // appended
  expect("MetadataIncompleteBuffer", "",
         file_of(one("U8", "99999", "0,99999"), 8));  // past the file
  expect("MetadataIncompleteBuffer", "", file_of("{}", 1));
}

TEST(Header, RulesComeInOrder) {
  const std::string f =
      "{\"a\":" + entry("F4", "1", "0,1") + ",\"b\":" + entry("U8", "1", "7,8") + "}";
  expect("MisalignedSlice", "a", file_of(f));  // a's rule 8 before b's rule 6, and before rule 10
  expect("InvalidHeader", "", file_of("{\"x\":1}\xff"));  // 4 before 5
  expect("InvalidHeaderDeserialization", "b",
         file_of("{\"a\":" + entry("F4", "1", "5,1") + ",\"b\":" + entry("F5", "1", "7,8") + "}"));
}

TEST(Header, EveryPrefixOfAFileIsRefused) {
  const std::string good =
      file_of(R"({"__metadata__":{"k":"v"},"x":)" + entry("F32", "2", "0,8") + "}", 8);
  ASSERT_EQ(reason(good), "accepted");
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_NE(reason(good.substr(0, size)), "accepted") << size;
}

TEST(Writer, Golden) {
  std::vector<SafetensorsEntry> none;
  EXPECT_EQ(build_safetensors_header(none, {}), "\x08\0\0\0\0\0\0\0{}      "s);
  std::vector<SafetensorsEntry> some = {{"e", "U8", {0}}, {"w", "F32", {2}}, {"i", "I64", {}}};
  const std::string header = build_safetensors_header(some, {{"b", "2"}, {"a", "1"}});
  EXPECT_EQ(header.size(), 208u);
  EXPECT_EQ(header.substr(8), R"({"__metadata__":{"a":"1","b":"2"},)"
                              R"("i":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                              R"("w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},)"
                              R"("e":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}}      )");
  EXPECT_EQ(some[0].name, "i");
  EXPECT_EQ(parse(header + std::string(16, '\0')).metadata.at("b"), "2");
}

TEST(Writer, EscapesAndComesBack) {
  const std::string name = "a\"\\/\b\f\n\r\t\x01\x1f\x7fé😀";
  std::vector<SafetensorsEntry> entries = {{name, "U8", {1}}};
  const std::string header = build_safetensors_header(entries, {{name, name + "\0"s}});
  EXPECT_NE(header.find(R"("a\"\\/\b\f\n\r\t\u0001\u001f)"), std::string::npos);
  const SafetensorsHeader back = parse(header + "x");
  EXPECT_EQ(back.entries[0].name, name);
  EXPECT_EQ(back.metadata.at(name), name + "\0"s);
}

TEST(Writer, RefusesWhatNoReaderTakes) {
  const auto refused = [](std::vector<SafetensorsEntry> entries,
                          const std::map<std::string, std::string>& metadata = {}) {
    try {
      build_safetensors_header(entries, metadata);
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kUsage;
    }
    return false;
  };
  EXPECT_TRUE(refused({{"x", "U8", {1}}, {"x", "F32", {1}}}));
  EXPECT_TRUE(refused({{"x", "U9", {1}}}));
  EXPECT_TRUE(refused({{"", "U8", {1}}}));
  EXPECT_TRUE(refused({{"__metadata__", "U8", {1}}}));
  EXPECT_TRUE(refused({{"a\0"s, "U8", {1}}}));
  EXPECT_TRUE(refused({{"\xff", "U8", {1}}}));
  EXPECT_TRUE(refused({{std::string(1025, 'a'), "U8", {1}}}));
  EXPECT_TRUE(refused({{"x", "F4", {1, 3}}}));
  EXPECT_TRUE(refused({{"x", "U8", {uint64_t{1} << 62, 4}}}));
  EXPECT_TRUE(refused({{"x", "U8", std::vector<uint64_t>(17, 1)}}));
  EXPECT_TRUE(refused({}, {{"a", "\xff"}}));
  EXPECT_TRUE(refused({}, {{"a", std::string(100'000'000, 'a')}}));
}

}  // namespace
}  // namespace sigma
