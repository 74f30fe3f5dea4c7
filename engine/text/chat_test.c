/* chat_test: templates are recognized, and messages rendered as the templates render them. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const perch_chat_message talk[] = {
    {"system", "Be brief."}, {"user", " Hi! "}, {"assistant", " Hello. "}, {"user", "Bye"}};

/* Templates as models have them, cut down to what they are known by, as they stand in a tokenizer_config.json. */
#define CHATML                                                                                                         \
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "   \
    "'\\n'}}"                                                                                                          \
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
#define LLAMA2                                                                                                         \
    "{% set content = '<<SYS>>\\n' + system_message %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"      \
    "{{ ' ' + content.strip() + ' ' + eos_token }}"
#define LLAMA3                                                                                                         \
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim " \
    "+"                                                                                                                \
    " '<|eot_id|>' %}"
#define LLAMA31                                                                                                        \
    "{%- if not date_string is defined %}{%- set date_string = \\\"26 Jul 2024\\\" %}{%- endif %}"                     \
    "{{- \\\"<|start_header_id|>system<|end_header_id|>\\\\n\\\\n\\\" }}{{- \\\"Cutting Knowledge Date: December "     \
    "2023\\\\n\\\" }}"                                                                                                 \
    "{{- \\\"Today Date: \\\" + date_string + \\\"\\\\n\\\\n\\\" }}{{- system_message }}{{- \\\"<|eot_id|>\\\" }}"
#define MISTRAL1                                                                                                       \
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] =="    \
    " 'assistant' %}{{ message['content'] + eos_token }}{% endif %}"
#define MISTRAL2 "{{- ' [INST] ' + message['content'] + ' [/INST]' }}{{- ' ' + message['content'] + eos_token}}"
#define MISTRAL3                                                                                                       \
    "{{- \\\"[INST] \\\" + message[\\\"content\\\"] + \\\"[/INST]\\\" }}{{- \\\" \\\" + "                              \
    "message[\\\"content\\\"]|trim + eos_token}}"
#define NEMO                                                                                                           \
    "{{- \\\"[INST]\\\" + message[\\\"content\\\"] + \\\"[/INST]\\\" }}{{- message[\\\"content\\\"] + eos_token}}"

/* A tokenizer with a chat template, BOS "a" and EOS "b". */
static perch_tokenizer *with_template(const char *template) {
    char config[2048];
    snprintf(config, sizeof config, "{\"bos_token\":\"a\",\"eos_token\":\"b\",\"chat_template\":%s}", template);
    return testing_tokenizer(TESTING_MODEL, config);
}

static void check(const perch_tokenizer *t, const char *format, const perch_chat_message *messages, size_t n, int first,
                  const char *want) {
    char text[1024];
    size_t bytes = 0;
    perch_error err = {0};
    perch_status status = perch_chat_render(t, format, messages, n, first, text, sizeof text, &bytes, &err);
    CHECK_MSG(status == PERCH_OK && strcmp(text, want) == 0 && bytes == strlen(want), "\"%s\" should be \"%s\" (%s)",
              text, want, err.message);
}

static void test_formats(void) {
    static const struct {
        const char *template, *format, *all, *later;
    } cases[] = {
        {"\"" CHATML "\"", "chatml",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n Hello. "
         "<|im_end|>\n"
         "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
         "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"},
        {"\"" LLAMA2 "\"", "llama2", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi! [/INST] Hello. ba[INST] Bye [/INST]",
         "a[INST] Bye [/INST]"},
        {"\"" LLAMA3 "\"", "llama3",
         "<|start_header_id|>system<|end_header_id|>\n\nBe "
         "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!"
         "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_"
         "header_id|>"
         "\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
        {"\"" MISTRAL2 "\"", NULL, NULL, " [INST] Bye [/INST]"},
        {NULL, "plain", "Be brief.\n Hi! \n Hello. \nBye\n", "\nBye\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        perch_tokenizer *t = with_template(cases[i].template ? cases[i].template : "null");
        if (!t) {
            continue;
        }
        /* By the template and by name it is the same. */
        if (cases[i].template && cases[i].all) {
            check(t, NULL, talk, 4, 1, cases[i].all);
        }
        if (cases[i].format) {
            check(t, cases[i].format, talk, 4, 1, cases[i].all);
            check(t, cases[i].format, talk + 3, 1, 0, cases[i].later);
        }
        if (cases[i].template) {
            check(t, NULL, talk + 3, 1, 0, cases[i].later);
        }
        perch_tokenizer_destroy(t);
    }
}

static void test_mistral(void) {
    static const struct {
        const char *template, *want;
    } cases[] = {{"\"" MISTRAL1 "\"", "[INST]  Hi!  [/INST] Hello. b[INST] Bye [/INST]"},
                 {"\"" MISTRAL2 "\"", " [INST]  Hi!  [/INST]  Hello. b [INST] Bye [/INST]"},
                 {"\"" MISTRAL3 "\"", "[INST]  Hi! [/INST] Hello.b[INST] Bye[/INST]"},
                 {"\"" NEMO "\"", "[INST] Hi! [/INST] Hello. b[INST]Bye[/INST]"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        perch_tokenizer *t = with_template(cases[i].template);
        if (t) {
            check(t, NULL, talk + 1, 3, 1, cases[i].want);
            check(t, "mistral", talk + 1, 3, 1, "[INST]  Hi!  [/INST]  Hello. b[INST] Bye [/INST]");
        }
        perch_tokenizer_destroy(t);
    }
}

/* A conversation rendered at once is the same as turn by turn with what the model generates in between. */
static void test_turns_join(void) {
    static const struct {
        const char *format, *answer;
    } cases[] = {{"chatml", "fine<|im_end|>"},
                 {"llama2", " fine b"},
                 {"llama3", "fine<|eot_id|>"},
                 {"mistral", " fineb"},
                 {"plain", "fine"}};
    static const perch_chat_message turns[] = {{"user", "How?"}, {"assistant", "fine"}, {"user", "Why?"}};
    perch_tokenizer *t = with_template("null");
    for (size_t i = 0; t && i < sizeof cases / sizeof *cases; i++) {
        char first[256], later[256], joined[1024];
        size_t n;
        CU_ASSERT(perch_chat_render(t, cases[i].format, turns, 1, 1, first, sizeof first, &n, NULL) == PERCH_OK);
        CU_ASSERT(perch_chat_render(t, cases[i].format, turns + 2, 1, 0, later, sizeof later, &n, NULL) == PERCH_OK);
        snprintf(joined, sizeof joined, "%s%s%s", first, cases[i].answer, later);
        check(t, cases[i].format, turns, 3, 1, joined);
    }
    perch_tokenizer_destroy(t);
}

/* What a template says where there is no system message, or before every one. Never for a format by name. */
static void test_system_messages(void) {
    static const struct {
        const char *template, *without, *with;
    } cases[] = {
        {"\"{{ '<|im_start|>system\\\\nDon\\\\'t panic.<|im_end|>\\\\n' }}" CHATML "\"",
         "<|im_start|>system\nDon't panic.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n"},
        {"\"{{- '<|im_start|>system\\\\n' + messages[0].content + '<|im_end|>\\\\n' }}{{- "
         "\\\"<|im_start|>system\\\\nYou're"
         " Q.<|im_end|>\\\\n\\\" }}" CHATML "\"",
         "<|im_start|>system\nYou're Q.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n"},
        {"\"{% if true %}<|im_start|>system\\nPlain<|im_end|>\\n{% endif %}<|im_start|>system\\n{{ x "
         "}}<|im_end|>" CHATML "\"",
         "<|im_start|>system\nPlain<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n"},
        {"\"" LLAMA31 "\"",
         "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
         "2024\n\n"
         "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_"
         "id|>\n\n",
         "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
         "2024\n\n"
         "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant"
         "<|end_header_id|>\n\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        perch_tokenizer *t = with_template(cases[i].template);
        if (t) {
            check(t, NULL, talk + 3, 1, 1, cases[i].without);
            check(t, NULL, talk, 2, 1, cases[i].with);
            check(t, "chatml", talk + 3, 1, 1, "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
            CU_ASSERT(tokenizer_bytes(t) > 0);
        }
        perch_tokenizer_destroy(t);
    }
}

static void test_several_templates(void) {
    perch_tokenizer *t = with_template(
        "[{\"name\":\"tool_use\",\"template\":\"[INST][/INST]\"},{\"name\":\"default\",\"template\":\"" CHATML "\"}]");
    if (t) {
        check(t, NULL, talk + 3, 1, 1, "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
    }
    perch_tokenizer_destroy(t);
}

static void check_refused(const perch_tokenizer *t, const char *format, const perch_chat_message *messages, size_t n,
                          int first, perch_status want, const char *message) {
    char text[64] = "x";
    size_t bytes = 1;
    perch_error err = {0};
    perch_status status = perch_chat_render(t, format, messages, n, first, text, sizeof text, &bytes, &err);
    CHECK_MSG(status == want && bytes == 0 && *text == 0, "%s: %s", format ? format : "NULL", text);
    CHECK_MSG(strcmp(err.message, message) == 0, "\"%s\" should be \"%s\"", err.message, message);
}

static void test_refused(void) {
#define NAMES "name a format: chatml, llama2, llama3, mistral, plain"
    static const perch_chat_message tool[] = {{"tool", "4"}}, nothing[] = {{"user", NULL}}, nobody[] = {{NULL, "x"}};
    static const perch_chat_message twice[] = {{"user", "a"}, {"user", "b"}, {"user", "c"}};
    static const char *const unknown[] = {"\"{{ message }}\"", "[{\"name\":\"rag\",\"template\":\"" CHATML "\"}]",
                                          "\"<|im_start|>user<|im_sep|>x<|im_end|>\"",
                                          "\"<|start_header_id|><|eot_id|>Cutting Knowledge Date: today\""};
    perch_tokenizer *none = with_template("null");
    CU_ASSERT_FATAL(none != NULL);
    check_refused(none, NULL, talk, 2, 1, PERCH_E_UNSUPPORTED, "the model has no chat template; " NAMES);
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        perch_tokenizer *t = with_template(unknown[i]);
        if (t) {
            check_refused(t, NULL, talk, 2, 1, PERCH_E_UNSUPPORTED,
                          "the model's chat template is none that perch knows; " NAMES);
        }
        perch_tokenizer_destroy(t);
    }
    check_refused(none, "alpaca", talk, 2, 1, PERCH_E_INVALID,
                  "format: \"alpaca\" is none of chatml, llama2, llama3, mistral, plain");
    check_refused(none, "chatml", talk, 0, 1, PERCH_E_INVALID, "n: there are no messages");
    check_refused(none, "chatml", tool, 1, 1, PERCH_E_INVALID,
                  "messages[0].role: \"tool\": is none of system, user, assistant");
    check_refused(none, "chatml", nothing, 1, 1, PERCH_E_INVALID, "messages[0].content is NULL");
    check_refused(none, "chatml", nobody, 1, 1, PERCH_E_INVALID, "messages[0].role is NULL");
    check_refused(none, "llama2", twice, 3, 1, PERCH_E_INVALID,
                  "messages[1].role: \"user\": in this chat format user and assistant take turns");
    check_refused(none, "llama2", talk, 3, 1, PERCH_E_INVALID, "messages: in this chat format the last is the user's");
    check_refused(none, "llama2", talk, 1, 1, PERCH_E_INVALID, "messages: in this chat format the last is the user's");
    check_refused(none, "llama2", talk, 2, 0, PERCH_E_INVALID,
                  "messages[0].role: \"system\": the chat format has no place for it here");
    check_refused(none, "mistral", talk, 2, 1, PERCH_E_INVALID,
                  "messages[0].role: \"system\": the chat format has no place for it here");
    char text[8];
    size_t n;
    CU_ASSERT(perch_chat_render(NULL, "plain", talk, 1, 1, text, 8, &n, NULL) == PERCH_E_INVALID);
    CU_ASSERT(perch_chat_render(none, "plain", NULL, 1, 1, text, 8, &n, NULL) == PERCH_E_INVALID);
    CU_ASSERT(perch_chat_render(none, "plain", talk, 1, 1, NULL, 8, &n, NULL) == PERCH_E_INVALID);
    CU_ASSERT(perch_chat_render(none, "plain", talk, 1, 1, text, 8, NULL, NULL) == PERCH_E_INVALID);
    perch_tokenizer_destroy(none);
}

static void test_buffers(void) {
    perch_tokenizer *t = with_template("null");
    char text[5] = "????";
    size_t n;
    CU_ASSERT_FATAL(t != NULL);
    CU_ASSERT(perch_chat_render(t, "plain", talk + 3, 1, 1, NULL, 0, &n, NULL) == PERCH_E_BUFFER && n == 4);
    CU_ASSERT(perch_chat_render(t, "plain", talk + 3, 1, 1, text, 4, &n, NULL) == PERCH_E_BUFFER && n == 4);
    CU_ASSERT(text[3] == 0);
    CU_ASSERT(perch_chat_render(t, "plain", talk + 3, 1, 1, text, 5, &n, NULL) == PERCH_OK && n == 4);
    CU_ASSERT_STRING_EQUAL(text, "Bye\n");
    perch_tokenizer_destroy(t);
}

/* Without BOS and EOS of its own a tokenizer's conversation has Llama 2's usual ones. */
static void test_usual_tokens(void) {
    perch_tokenizer *t = testing_tokenizer(TESTING_MODEL, NULL);
    if (t) {
        check(t, "llama2", talk + 1, 3, 1, "[INST] Hi! [/INST] Hello. </s><s>[INST] Bye [/INST]");
    }
    perch_tokenizer_destroy(t);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"formats by template and by name", test_formats},
        {"Mistral's templates differ in their spaces", test_mistral},
        {"turn by turn is the same as at once", test_turns_join},
        {"system messages that a template brings along", test_system_messages},
        {"one of several templates", test_several_templates},
        {"what a format can't express is refused", test_refused},
        {"buffers that are too small", test_buffers},
        {"BOS and EOS where the tokenizer has none", test_usual_tokens},
    };
    return test_main("chat", tests, sizeof tests / sizeof *tests, argc, argv);
}
