/* tree: see tree.h. */
#include "cache/tree.h"

#include <stddef.h>

/* The finalizer of SplitMix64 (Steele et al. 2014): who is nearer to the root. */
static uint64_t rank(const tree_node *node) {
    uint64_t z = node->tick * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static bool before(const tree_node *a, const tree_node *b) {
    return a->key < b->key || (a->key <= b->key && a->tick < b->tick);
}

static tree_node **link_to(tree *t, const tree_node *node) {
    tree_node *p = node->parent;
    return !p ? &t->root : p->left == node ? &p->left : &p->right;
}

/* The child takes its parent's place, and the parent becomes its child. */
static void rotate_up(tree *t, tree_node *child) {
    tree_node *parent = child->parent, *moved;
    *link_to(t, parent) = child;
    child->parent = parent->parent;
    if (parent->left == child) {
        moved = parent->left = child->right;
        child->right = parent;
    } else {
        moved = parent->right = child->left;
        child->left = parent;
    }
    parent->parent = child;
    if (moved) {
        moved->parent = parent;
    }
}

void tree_insert(tree *t, tree_node *node) {
    tree_node **at = &t->root;
    node->parent = node->left = node->right = NULL;
    while (*at) {
        node->parent = *at;
        at = before(node, *at) ? &(*at)->left : &(*at)->right;
    }
    *at = node;
    while (node->parent && rank(node) > rank(node->parent)) {
        rotate_up(t, node);
    }
}

void tree_remove(tree *t, tree_node *node) {
    if (node->tick == 0) {
        return;
    }
    while (node->left && node->right) {
        rotate_up(t, rank(node->left) > rank(node->right) ? node->left : node->right);
    }
    tree_node *child = node->left ? node->left : node->right;
    *link_to(t, node) = child;
    if (child) {
        child->parent = node->parent;
    }
    node->tick = 0;
}

static tree_node *outermost(tree_node *node, bool right) {
    for (tree_node *next = node; next; next = right ? next->right : next->left) {
        node = next;
    }
    return node;
}

tree_node *tree_end(const tree *t, bool last) { return outermost(t->root, last); }

tree_node *tree_next(const tree_node *node, bool back) {
    tree_node *child = back ? node->left : node->right;
    if (child) {
        return outermost(child, back);
    }
    while (node->parent && (back ? node->parent->left : node->parent->right) == node) {
        node = node->parent;
    }
    return node->parent;
}

const char *tree_check(const tree *t, uint64_t *n) {
    *n = 0;
    for (const tree_node *node = tree_end(t, false), *next; node; node = next) {
        next = tree_next(node, false);
        ++*n;
        if (node->tick == 0 || (next && !before(node, next))) {
            return "a tree is not in order";
        }
        if (node->parent
                ? (node->parent->left != node && node->parent->right != node) || rank(node) > rank(node->parent)
                : t->root != node) {
            return "a tree's parent and child disagree";
        }
    }
    return NULL;
}
