/* parse_test: tokenizer.json files that are wrong or beyond perch get an error that names the place. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB "\"vocab\":{\"a\":0,\"b\":1}"
#define MODEL(fields) "{\"model\":{\"type\":\"BPE\"," fields "}}"
#define WITH(fields) "{" TESTING_MODEL "," fields "}"
#define ADDED(id, content) ADDED_FLAG(id, content, "false")
#define ADDED_FLAG(id, content, flag)                                                                                  \
    "{\"id\":" id ",\"content\":" content ",\"single_word\":" flag                                                     \
    ",\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"                                                         \
    "\"special\":true}"

struct bad_case {
    const char *json;
    perch_status status;
    const char *message; /* behind "file: " */
};

static void check_cases(const struct bad_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        perch_tokenizer *t = (perch_tokenizer *)&n;
        perch_error err = {0};
        perch_status status = tokenizer_parse(cases[i].json, strlen(cases[i].json), NULL, 0, "file", &t, &err);
        CHECK_MSG(status == cases[i].status && !t, "%s: %s", cases[i].json, perch_status_name(status));
        CHECK_MSG(status == err.status && strncmp(err.message, "file: ", 6) == 0 &&
                      strcmp(err.message + 6, cases[i].message) == 0,
                  "%s: \"%s\" should be \"%s\"", cases[i].json, err.message, cases[i].message);
        if (status == PERCH_OK) {
            perch_tokenizer_destroy(t);
        }
    }
}

#define CHECK_CASES(cases) check_cases(cases, sizeof cases / sizeof *cases)
#define BAD PERCH_E_FORMAT
#define BEYOND PERCH_E_UNSUPPORTED

static void test_document(void) {
    static const struct bad_case cases[] = {
        {"", BAD, "line 1: not JSON"},
        {"[]", BAD, "must be an object"},
        {"{}", BAD, "model: must be an object"},
        {"{\"model\":[]}", BAD, "model: must be an object"},
        {"{\"model\":{}}", BAD, "model.type: must be a string"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", BEYOND, "model.type: \"Unigram\" is not supported"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", BEYOND, "model.type: \"WordPiece\" is not supported"},
        {"{\"version\":\"2.0\"}", BEYOND, "version: \"2.0\" is not supported (only 1.0 is)"},
        {"{\"version\":1.0}", BAD, "version: must be a string"},
        {WITH("\"truncation\":{\"max_length\":8}"), BEYOND, "truncation: truncation is not supported (only null is)"},
        {WITH("\"padding\":{\"pad_id\":0}"), BEYOND, "padding: padding is not supported (only null is)"},
    };
    CHECK_CASES(cases);
}

static void test_model(void) {
    static const struct bad_case cases[] = {
        {MODEL("\"merges\":[]"), BAD, "model.vocab: must be an object"},
        {MODEL("\"vocab\":[],\"merges\":[]"), BAD, "model.vocab: must be an object"},
        {MODEL("\"vocab\":{},\"merges\":[]"), BAD, "model.vocab: has no tokens"},
        {MODEL("\"vocab\":{\"a\":\"0\"},\"merges\":[]"), BAD, "model.vocab.a: must be an integer"},
        {MODEL("\"vocab\":{\"a\":0.5},\"merges\":[]"), BAD, "model.vocab.a: must be an integer"},
        {MODEL("\"vocab\":{\"a\":-1},\"merges\":[]"), BAD, "model.vocab.a: -1 is not within 0..2147483646"},
        {MODEL("\"vocab\":{\"a\":2147483647},\"merges\":[]"), BAD,
         "model.vocab.a: 2147483647 is not within 0..2147483646"},
        {MODEL("\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]"), BAD, "model.vocab.b: another token has the id 0, too"},
        {MODEL("\"vocab\":{\"a\":0,\"b\":2000000},\"merges\":[]"), BAD,
         "model.vocab: ids reach 2000000, but there are only 2 tokens"},
        {MODEL("\"vocab\":{\"a\":0,\"b\":1,\"a\":2},\"merges\":[]"), BAD, "the key \"a\" stands there twice"},
        {MODEL(VOCAB), BAD, "model.merges: must be an array"},
        {MODEL(VOCAB ",\"merges\":{}"), BAD, "model.merges: must be an array"},
        {MODEL(VOCAB ",\"merges\":[7]"), BAD, "model.merges[0]: must be a string"},
        {MODEL(VOCAB ",\"merges\":[\"ab\"]"), BAD, "model.merges[0]: must be two tokens with a space between"},
        {MODEL(VOCAB ",\"merges\":[\"a b c\"]"), BAD, "model.merges[0]: must be two tokens with a space between"},
        {MODEL(VOCAB ",\"merges\":[\"a b\"]"), BAD, "model.merges[0]: no token \"ab\" in the vocabulary"},
        {MODEL(VOCAB ",\"merges\":[[\"a\",\"c\"]]"), BAD, "model.merges[0]: no token \"c\" in the vocabulary"},
        {MODEL(VOCAB ",\"merges\":[\" a\"]"), BAD, "model.merges[0]: no token \"\" in the vocabulary"},
        {MODEL(VOCAB ",\"merges\":[[\"a\"]]"), BAD, "model.merges[0]: must be a pair of strings"},
        {MODEL(VOCAB ",\"merges\":[[\"a\",\"b\",\"a\"]]"), BAD, "model.merges[0]: must be a pair of strings"},
        {MODEL(VOCAB ",\"merges\":[[\"a\",1]]"), BAD, "model.merges[0][1]: must be a string"},
        {MODEL(VOCAB ",\"merges\":[],\"dropout\":0.1"), BEYOND,
         "model.dropout: dropout is not supported (only null is)"},
        {MODEL(VOCAB ",\"merges\":[],\"continuing_subword_prefix\":\"##\""), BEYOND,
         "model.continuing_subword_prefix: \"##\" is not supported (only null is)"},
        {MODEL(VOCAB ",\"merges\":[],\"end_of_word_suffix\":\"</w>\""), BEYOND,
         "model.end_of_word_suffix: \"</w>\" is not supported (only null is)"},
        {MODEL(VOCAB ",\"merges\":[],\"end_of_word_suffix\":1"), BAD, "model.end_of_word_suffix: must be a string"},
        {MODEL(VOCAB ",\"merges\":[],\"unk_token\":\"?\""), BAD, "model.unk_token: \"?\" is not in the vocabulary"},
        {MODEL(VOCAB ",\"merges\":[],\"unk_token\":0"), BAD, "model.unk_token: must be a string"},
        {MODEL(VOCAB ",\"merges\":[],\"fuse_unk\":1"), BAD, "model.fuse_unk: must be true or false"},
        {MODEL(VOCAB ",\"merges\":[],\"byte_fallback\":\"\""), BAD, "model.byte_fallback: must be true or false"},
        {MODEL(VOCAB ",\"merges\":[],\"ignore_merges\":[]"), BAD, "model.ignore_merges: must be true or false"},
    };
    CHECK_CASES(cases);
}

static void test_added_tokens(void) {
    static const struct bad_case cases[] = {
        {WITH("\"added_tokens\":{}"), BAD, "added_tokens: must be an array"},
        {WITH("\"added_tokens\":[1]"), BAD, "added_tokens[0]: must be an object"},
        {WITH("\"added_tokens\":[{}]"), BAD, "added_tokens[0].id: must be an integer"},
        {WITH("\"added_tokens\":[{\"id\":8}]"), BAD, "added_tokens[0].content: must be a string"},
        {WITH("\"added_tokens\":[{\"id\":8,\"content\":\"x\"}]"), BAD, "added_tokens[0].single_word: is missing"},
        {WITH("\"added_tokens\":[" ADDED_FLAG("8", "\"x\"", "0") "]"), BAD,
         "added_tokens[0].single_word: must be true or false"},
        {WITH("\"added_tokens\":[" ADDED("8", "\"\"") "]"), BAD, "added_tokens[0].content: is empty"},
        {WITH("\"added_tokens\":[" ADDED("-8", "\"x\"") "]"), BAD,
         "added_tokens[0].id: -8 is not within 0..2147483646"},
        {WITH("\"added_tokens\":[" ADDED("8", "\"x\"") "," ADDED("8", "\"y\"") "]"), BAD,
         "added_tokens[1].id: another token has the id 8, too"},
        {WITH("\"added_tokens\":[" ADDED("8", "\"x\"") "," ADDED("9", "\"x\"") "]"), BAD,
         "added_tokens[1].content: was added before"},
        {WITH("\"added_tokens\":[" ADDED("0", "\"x\"") "]"), BAD,
         "added_tokens[0].id: another token has the id 0, too"},
        {WITH("\"added_tokens\":[" ADDED("3", "\"abc\"") "]"), BAD,
         "added_tokens[0].id: is 3, but the vocabulary has \"abc\" as 6"},
        {WITH("\"added_tokens\":[" ADDED("99999", "\"x\"") "]"), BAD,
         "model.vocab: ids reach 99999, but there are only 9 tokens"},
    };
    CHECK_CASES(cases);
}

static void test_steps(void) {
#define SPLIT(pattern, behavior)                                                                                       \
    "{\"type\":\"Split\",\"pattern\":" pattern ",\"behavior\":" behavior ",\"invert\":false}"
    static const struct bad_case cases[] = {
        {WITH("\"normalizer\":[]"), BAD, "normalizer: must be an object"},
        {WITH("\"normalizer\":{}"), BAD, "normalizer.type: must be a string"},
        {WITH("\"normalizer\":{\"type\":\"Nmt\"}"), BEYOND, "normalizer.type: \"Nmt\" is not supported"},
        {WITH(
             "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"StripAccents\"}]}"),
         BEYOND, "normalizer.normalizers[1].type: \"StripAccents\" is not supported"},
        {WITH("\"normalizer\":{\"type\":\"Sequence\"}"), BAD, "normalizer.normalizers: must be an array"},
        {WITH("\"normalizer\":{\"type\":\"Prepend\"}"), BAD, "normalizer.prepend: must be a string"},
        {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}"), BAD,
         "normalizer.content: must be a string"},
        {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":\"a\",\"content\":\"\"}"), BAD,
         "normalizer.pattern: must be {\"String\": ...} or {\"Regex\": ...}"},
        {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}"), BEYOND,
         "normalizer.pattern.Regex: regular expression: missing closing parenthesis, at \"\""},
        {WITH("\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}"), BEYOND,
         "pre_tokenizer.type: \"UnicodeScripts\" is not supported"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":1}"), BAD,
         "pre_tokenizer.pretokenizers: must be an array"},
        {WITH("\"pre_tokenizer\":" SPLIT("{\"String\":\"a\"}", "\"Merged\"")), BEYOND,
         "pre_tokenizer.behavior: \"Merged\" is not supported"},
        {WITH("\"pre_tokenizer\":" SPLIT("{\"String\":1}", "\"Isolated\"")), BAD,
         "pre_tokenizer.pattern.String: must be a string"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Removed\"}"), BAD,
         "pre_tokenizer.invert: is missing"},
        {WITH("\"pre_tokenizer\":{\"type\":\"ByteLevel\"}"), BAD, "pre_tokenizer.add_prefix_space: is missing"},
        {WITH("\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":1}"), BAD,
         "pre_tokenizer.use_regex: must be true or false"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Digits\"}"), BAD, "pre_tokenizer.individual_digits: is missing"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":0}"), BAD,
         "pre_tokenizer.behavior: must be a string"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"__\"}"), BAD,
         "pre_tokenizer.replacement: must be one character"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}"), BEYOND,
         "pre_tokenizer.prepend_scheme: \"last\" is not supported"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}"), BAD,
         "pre_tokenizer.add_prefix_space: false contradicts prepend_scheme"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"split\":0}"), BAD,
         "pre_tokenizer.split: must be true or false"},
        {WITH("\"decoder\":{\"type\":\"WordPiece\"}"), BEYOND, "decoder.type: \"WordPiece\" is not supported"},
        {WITH("\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"CTC\"}]}"), BEYOND,
         "decoder.decoders[0].type: \"CTC\" is not supported"},
        {WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\"\",\"start\":1,\"stop\":0}"), BAD,
         "decoder.content: must be one character"},
        {WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}"), BAD,
         "decoder.start: -1 is not within 0..1024"},
        {WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":1}"), BAD,
         "decoder.stop: must be an integer"},
        {WITH("\"decoder\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}"), BEYOND,
         "decoder.pattern.String: an empty pattern is not supported"},
    };
    CHECK_CASES(cases);
}

static void test_templates(void) {
#define TEMPLATE(pieces, tokens)                                                                                       \
    WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" pieces "],\"special_tokens\":{" tokens "}" \
         "}")
#define PIECE_A "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}"
#define PIECE_X "{\"SpecialToken\":{\"id\":\"x\",\"type_id\":0}}"
    static const struct bad_case cases[] = {
        {WITH("\"post_processor\":{\"type\":\"RobertaProcessing\"}"), BEYOND,
         "post_processor.type: \"RobertaProcessing\" is not supported"},
        {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\"}"), BAD, "post_processor.single: must be an array"},
        {TEMPLATE("", ""), BAD, "post_processor.single: a single template has the sequence A once"},
        {TEMPLATE("1", ""), BAD, "post_processor.single[0].Sequence.id: must be a string"},
        {TEMPLATE(PIECE_A "," PIECE_A, ""), BAD,
         "post_processor.single[1].Sequence.id: a single template has the sequence A once"},
        {TEMPLATE("{\"Sequence\":{\"id\":\"B\"}}", ""), BAD,
         "post_processor.single[0].Sequence.id: a single template has the sequence A once"},
        {TEMPLATE(PIECE_X "," PIECE_A, ""), BAD,
         "post_processor.single[0].SpecialToken.id: special_tokens has no \"x\""},
        {TEMPLATE(PIECE_X "," PIECE_A, "\"x\":{\"ids\":1}"), BAD,
         "post_processor.special_tokens.x.ids: must be an array"},
        {TEMPLATE(PIECE_X "," PIECE_A, "\"x\":{\"ids\":[8]}"), BAD,
         "post_processor.special_tokens.x.ids[0]: 8 is not within 0..7"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":2},\"merges\":[]},\"post_processor\":{\"type\":\"TemplateProcessing\","
         "\"single\":[" PIECE_X "," PIECE_A "],\"special_tokens\":{\"x\":{\"ids\":[1]}}}}",
         BAD, "post_processor.special_tokens.x.ids[0]: no token has the id 1"},
        {WITH("\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"TemplateProcessing\",\"single\":"
              "[" PIECE_A "]},{\"type\":\"TemplateProcessing\",\"single\":[" PIECE_A "]}]}"),
         BEYOND, "post_processor.processors[1]: a second template is not supported"},
    };
    CHECK_CASES(cases);
}

/* Where a node stands, in its words: one line, whatever the file has in it, and of a long path the end. */
static void test_places(void) {
    const jv_doc *doc = testing_doc("{\"a\":[{\"b\\nc\":1},2]}");
    CU_ASSERT_FATAL(doc != NULL);
    struct jnode top = jnode_top(doc, "name.json"), a = jnode_get(&top, "a"), first = jnode_first(&a);
    struct jnode second = jnode_next(&first), inner = jnode_first(&first), absent = jnode_get(&second, "x");
    perch_error err;
    CU_ASSERT(jnode_fail(&top, BAD, &err, "no %s", "good\tor\nbad") == BAD && err.status == BAD);
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: no good?or?bad");
    jnode_fail(&a, BAD, &err, "x");
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: a: x");
    jnode_fail(&inner, BAD, &err, "x");
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: a[0].b?c: x");
    jnode_fail(&absent, BEYOND, &err, "x");
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: a[1].x: x");
    CU_ASSERT(!jnode_next(&second).value && !jnode_first(&second).value && !jnode_first(&absent).value);
    char name[2000];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    top.key = name;
    jnode_fail(&second, BAD, &err, "the end");
    CU_ASSERT(strncmp(err.message, "...nnn", 6) == 0 && strstr(err.message, "n: a[1]: the end") != NULL);
}

static void test_config(void) {
    static const struct {
        const char *config, *message;
    } cases[] = {
        {"{", "line 1: not JSON"},
        {"[]", "must be an object"},
        {"{\"bos_token\":7}", "bos_token: must be a string"},
        {"{\"bos_token\":{}}", "bos_token.content: must be a string"},
        {"{\"bos_token\":\"<s>\"}", "bos_token: the tokenizer has no \"<s>\""},
        {"{\"eos_token\":{\"content\":\"</s>\"}}", "eos_token.content: the tokenizer has no \"</s>\""},
        {"{\"add_bos_token\":true}", "add_bos_token: is true, but the token is not named"},
        {"{\"add_eos_token\":\"yes\"}", "add_eos_token: must be true or false"},
        {"{\"chat_template\":7}", "chat_template: must be a string"},
        {"{\"chat_template\":[{\"name\":\"default\"}]}", "chat_template[0].template: must be a string"},
        {"{\"chat_template\":[{\"template\":\"x\"}]}", "chat_template[0].name: must be a string"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const char json[] = "{" TESTING_MODEL "}";
        perch_tokenizer *t = NULL;
        perch_error err = {0};
        CU_ASSERT(tokenizer_parse(json, sizeof json - 1, cases[i].config, strlen(cases[i].config), "file", &t, &err) ==
                  BAD);
        CU_ASSERT(t == NULL && strncmp(err.message, "file (tokenizer_config.json): ", 30) == 0);
        CHECK_MSG(strcmp(err.message + 30, cases[i].message) == 0, "%s", err.message);
    }
}

/* Sequences within sequences to a depth; more decoders than there is room for. */
static void test_nesting(void) {
    static const char *const parts[][3] = {
        {"normalizer", "normalizers", "{\"type\":\"NFC\"}"},
        {"pre_tokenizer", "pretokenizers", "{\"type\":\"Punctuation\"}"},
        {"decoder", "decoders", "{\"type\":\"Fuse\"}"},
        {"post_processor", "processors", "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true}"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        for (size_t depth = 16; depth <= 17; depth++) {
            struct text_buf json = {0};
            char piece[128];
            static const char opening[] = "{" TESTING_MODEL ",\"";
            CU_ASSERT_FATAL(buf_append(&json, opening, sizeof opening - 1, NULL) == PERCH_OK);
            size_t n = (size_t)snprintf(piece, sizeof piece, "%s\":", parts[i][0]);
            CU_ASSERT_FATAL(buf_append(&json, piece, n, NULL) == PERCH_OK);
            n = (size_t)snprintf(piece, sizeof piece, "{\"type\":\"Sequence\",\"%s\":[", parts[i][1]);
            for (size_t k = 0; k < depth; k++) {
                CU_ASSERT_FATAL(buf_append(&json, piece, n, NULL) == PERCH_OK);
            }
            CU_ASSERT_FATAL(buf_append(&json, parts[i][2], strlen(parts[i][2]), NULL) == PERCH_OK);
            for (size_t k = 0; k < depth; k++) {
                CU_ASSERT_FATAL(buf_append(&json, "]}", 2, NULL) == PERCH_OK);
            }
            CU_ASSERT_FATAL(buf_append(&json, "}", 1, NULL) == PERCH_OK);
            perch_tokenizer *t = NULL;
            perch_error err = {0};
            perch_status status = tokenizer_parse(json.data, json.n, NULL, 0, "file", &t, &err);
            CHECK_MSG(status == (depth == 16 ? PERCH_OK : BEYOND), "%s: %s", parts[i][0], err.message);
            CHECK_MSG(depth == 16 || strstr(err.message, "nested too deeply"), "%s", err.message);
            perch_tokenizer_destroy(t);
            free(json.data);
        }
    }
}

/* Whatever single bytes of a good file become, it loads or says where it is wrong. */
static void test_mutations(void) {
    size_t n;
    char *json = testing_read(test_fixture("text/metaspace.json"), &n);
    test_rng rng = {test_seed(41)};
    for (uint64_t round = 0; json && round < test_scaled(400); round++) {
        char saved[3];
        size_t at[3];
        for (size_t i = 0; i < 3; i++) {
            at[i] = test_rng_below(&rng, n);
            saved[i] = json[at[i]];
            json[at[i]] =
                (char)(test_rng_below(&rng, 2) ? test_rng_below(&rng, 256) : (uint64_t)json[test_rng_below(&rng, n)]);
        }
        perch_tokenizer *t = NULL;
        perch_error err = {0};
        int32_t ids[64];
        size_t n_ids;
        perch_status status = tokenizer_parse(json, n, NULL, 0, "file", &t, &err);
        CHECK_MSG(status == PERCH_OK ? t != NULL : !t && strncmp(err.message, "file: ", 6) == 0, "%s", err.message);
        if (t) {
            CU_ASSERT(perch_tokenizer_encode(t, "The <mask> perch!", 17, PERCH_ENCODE_SPECIAL, ids, 64, &n_ids, NULL) ==
                      PERCH_OK);
        }
        perch_tokenizer_destroy(t);
        for (size_t i = 3; i-- > 0;) {
            json[at[i]] = saved[i];
        }
    }
    free(json);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"the document", test_document},
        {"the model", test_model},
        {"added tokens", test_added_tokens},
        {"normalizer, pre-tokenizer, decoder", test_steps},
        {"post-processor", test_templates},
        {"tokenizer_config.json", test_config},
        {"errors name the place", test_places},
        {"nested sequences", test_nesting},
        {"random bytes of a file changed", test_mutations},
    };
    return test_main("parse", tests, sizeof tests / sizeof *tests, argc, argv);
}
