/*
 * commands: one function for each; argv[0] is the command's name. They return the exit code.
 */
#ifndef PERCH_TOOLS_COMMANDS_H
#define PERCH_TOOLS_COMMANDS_H

int cmd_generate(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_batch(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_top(int argc, char **argv);

#endif
