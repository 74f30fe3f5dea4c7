/*
 * tree: intrusive ordered sets. A treap (Seidel and Aragon 1996): a search tree by key that is a heap by numbers which are as good
 * as random, so that it is as deep as a tree into which keys came in random order: insert and remove are O(log n) expected, and
 * nothing is allocated. Keys don't change while a node is in a tree.
 */
#ifndef PERCH_CACHE_TREE_H
#define PERCH_CACHE_TREE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct tree_node {
    struct tree_node *parent, *left, *right;
    double key;
    uint64_t tick; /* of two with the same key the lower goes first; no two in a tree have the same; 0: in none */
} tree_node;

typedef struct tree {
    tree_node *root;
} tree;

void tree_insert(tree *t, tree_node *node);
void tree_remove(tree *t, tree_node *node);             /* nothing happens where it is not in */
tree_node *tree_end(const tree *t, bool last);          /* NULL: it is empty */
tree_node *tree_next(const tree_node *node, bool back); /* NULL: there is none in that direction */
const char *tree_check(const tree *t, uint64_t *n);     /* NULL, or what is broken; n: how many there are */

#endif
