/*
 * demo_report: what the demo says in plain lines: a log as it goes, figures and a verdict at the end.
 */
#ifndef PERCH_TOOLS_DEMO_REPORT_H
#define PERCH_TOOLS_DEMO_REPORT_H

#include "demo_run.h"

/* What is about to be run, and in how much memory. */
void demo_log_begin(const struct demo_run *run, const char *name);

/* For struct demo_watch, user unused: a line for each question that asks for a fact. */
void demo_log_answered(void *user, const struct demo_run *run, const struct demo_talk *talk, size_t turn);

/* Both runs side by side. */
perch_status demo_report_figures(const struct demo_run *evicting, const struct demo_run *full, perch_error *err);

/* The fact that was evicted most often between being told and being asked for. */
void demo_report_example(const struct demo_run *run);

/* Lists wrong answers, compares the transcripts and ends with the verdict. True: all is right. */
bool demo_report_verdict(const struct demo_run *evicting, const struct demo_run *full, bool colour);

#endif
