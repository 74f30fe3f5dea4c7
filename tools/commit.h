/*
 * commit: the commit that this was built from, "unknown" outside a repository. commit.cmake writes the source at every build.
 */
#ifndef PERCH_TOOLS_COMMIT_H
#define PERCH_TOOLS_COMMIT_H

extern const char tool_commit[];

#endif
