/*
 * blocks: a file's first N consecutive blocks of SIZE bytes as JSON lines {"text": block}.  usage: cli_blocks FILE SIZE N
 * Exit code 1: the file is shorter, or a block is not UTF-8.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    FILE *file = argc == 4 ? fopen(argv[1], "rb") : NULL;
    size_t size = argc == 4 ? strtoul(argv[2], NULL, 10) : 0;
    size_t n = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
    char *block = malloc(size + 1);
    int code = file == NULL || block == NULL ? 1 : 0;
    for (size_t i = 0; code == 0 && i < n; i++) {
        code = fread(block, 1, size, file) != size;
        json_t *line = code == 0 ? json_pack("{s:s%}", "text", block, size) : NULL;
        code = line == NULL || json_dumpf(line, stdout, JSON_COMPACT) != 0;
        putchar('\n');
        json_decref(line);
    }
    free(block);
    if (file != NULL) {
        fclose(file);
    }
    return code;
}
