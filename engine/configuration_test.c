/*
 * docs/configuration.md is what the table of options says. The page is made here: PERCH_WRITE_DOCS=1 writes it anew,
 * otherwise the test fails where the two differ.
 */
#include "perch/perch.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE "docs/configuration.md"

static const char *const introduction =
    "# Configuration\n"
    "\n"
    "Every key there is, made from the table in `engine/options.c` by `configuration_test`\n"
    "(`PERCH_WRITE_DOCS=1` writes this page anew). A key is set by a line in an INI file, on the command line as\n"
    "`section.key=value`, by `perch_options_set`, or as the field of the same name in `perch_options`. Later settings\n"
    "replace earlier ones. An unknown, repeated or out-of-range key is an error that names the file, the section and\n"
    "the key.\n"
    "\n"
    "## Files\n"
    "\n"
    "A line is empty, a comment that begins with `#` or `;`, a `[section]`, or `key = value`.\n"
    "\n"
    "- Names consist of letters, digits, `_`, `-` and `.`; upper and lower case are the same.\n"
    "- A value may stand in `\"...\"` or `'...'`. It has to if it holds `#` or `;`, or if spaces at its ends matter.\n"
    "- A comment may follow a value behind a space.\n"
    "- A line has at most 1022 bytes and isn't continued by a backslash; a file has at most 256 KiB.\n"
    "- Bytes take a suffix `K`, `M`, `G` or `T`: powers of 1024.\n"
    "- `auto` leaves the choice to the engine.\n"
    "- A relative path is taken from the folder of the file that it stands in; on the\n"
    "  command line, from the working directory.\n"
    "- Sections that are not listed here belong to the program: `perch bench` reads `[bench]`.\n";

static const struct {
    const char *section, *about;
} sections[] = {
    {"engine", "The batch, its queue and its steps. `max_step_tokens` holds `max_batch_size` + `prefill_reserve`."},
    {"model", "What is served. `path` has to be set."},
    {"cache", "The pool of KV memory."},
    {"sampling", "Defaults of requests. `auto` is the model's `generation_config.json`, or off where it has nothing."},
    {"parallel", "The machine's share that the engine may use."},
    {"store",
     "Where sequences outlive the engine; `perch/perch.h` tells what is committed when. In `perch_options` these are "
     "the fields\n`store_backend`, `store_path`, and so on."},
};

/* '|' ends a cell, also in code. */
static void put_escaped(FILE *out, const char *text) {
    for (; *text; text++) {
        fprintf(out, *text == '|' ? "\\%c" : "%c", *text);
    }
}

static const char *about(const char *section) {
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        if (strcmp(sections[i].section, section) == 0) {
            return sections[i].about;
        }
    }
    return NULL;
}

static void put_page(FILE *out) {
    const perch_option_info *info;
    const char *section = "";
    fputs(introduction, out);
    for (size_t i = 0; (info = perch_options_key(i)); i++) {
        if (strcmp(section, info->section) != 0) {
            section = info->section;
            CHECK_MSG(about(section) != NULL, "[%s] is not described", section);
            fprintf(out, "\n## [%s]\n\n%s\n\n| key | type | range | default | |\n|---|---|---|---|---|\n", section,
                    about(section) ? about(section) : "");
        }
        fprintf(out, "| `%s` | ", info->key);
        put_escaped(out, info->type);
        fprintf(out, " | %s | %s%s%s | ", info->range, *info->default_value ? "`" : "", info->default_value,
                *info->default_value ? "`" : "");
        put_escaped(out, info->help);
        fputs(" |\n", out);
    }
}

static char *read_page(size_t *n) {
    FILE *file = fopen(PAGE, "rb");
    char *text = calloc(1, 1 << 20);
    *n = file && text ? fread(text, 1, (1 << 20) - 1, file) : 0;
    if (file) {
        fclose(file);
    }
    return text;
}

static void test_page(void) {
    char *page = NULL;
    size_t page_bytes = 0, n;
    FILE *out = open_memstream(&page, &page_bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(out);
    put_page(out);
    fclose(out);
    if (getenv("PERCH_WRITE_DOCS")) {
        FILE *file = fopen(PAGE, "wb");
        CU_ASSERT_PTR_NOT_NULL_FATAL(file);
        CU_ASSERT_EQUAL(fwrite(page, 1, page_bytes, file), page_bytes);
        fclose(file);
    }
    char *stored = read_page(&n);
    CU_ASSERT_PTR_NOT_NULL_FATAL(stored);
    size_t same = 0;
    while (same < n && same < page_bytes && stored[same] == page[same]) {
        same++;
    }
    CHECK_MSG(n == page_bytes && same == n,
              PAGE " differs from byte %zu on (\"%.40s\"): run configuration_test with PERCH_WRITE_DOCS=1", same,
              page + same);
    free(stored);
    free(page);
}

int main(int argc, char **argv) {
    const test_case tests[] = {{"the_page_is_what_the_table_says", test_page}};
    return test_main("configuration", tests, 1, argc, argv);
}
