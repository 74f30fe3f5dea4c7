/*
 * rope: queries, keys and values of random batches against a reference in double, and all of KV memory besides.
 */
#include "kernels/cuda/kernel_testing.hh"

#include <algorithm>

/* Rows of a batch over groups of KV that lie anywhere, in one run of memory or as blocks. */
struct rope_case {
    kernels_dtype dtype;
    kernels_attention attention;
    uint32_t n_tokens, launched;
    test_batch batch;
    std::vector<uint32_t> order; /* where the groups of rows by blocks lie: shuffled */
    std::vector<bool> by_blocks; /* [row] */
    uint32_t n_groups;           /* a row */
    std::vector<float> table;
    std::vector<uint16_t> qkv;
};

static const uint32_t MAX_POSITION = 60;

static size_t group_elements(const rope_case &c) { return c.attention.layout.group_bytes / sizeof(uint16_t); }

static rope_case random_case(test_rng *rng, kernels_dtype dtype, uint32_t head_dim) {
    rope_case c = {};
    c.dtype = dtype;
    kv_layout *layout = &c.attention.layout;
    *layout = {random_count(rng, 3), random_count(rng, 3), head_dim, 2, 0};
    layout->group_bytes = 2ull * layout->n_layers * layout->n_kv_heads * 2 * KV_GROUP_TOKENS * head_dim;
    c.attention.n_heads = layout->n_kv_heads * random_count(rng, 4);
    c.attention.layer = static_cast<uint32_t>(test_rng_below(rng, layout->n_layers));
    const uint32_t n_rows = random_count(rng, 5);
    c.n_groups = (MAX_POSITION + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS;
    for (uint32_t i = 0; i < n_rows * c.n_groups; i++) {
        c.order.insert(c.order.begin() + static_cast<ptrdiff_t>(test_rng_below(rng, i + 1)), i);
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        kernels_row row = {};
        row.first_token = c.n_tokens;
        row.n_tokens = r % 2 == 0 ? 1 : random_count(rng, 20);
        row.first_position = static_cast<uint32_t>(test_rng_below(rng, MAX_POSITION - row.n_tokens + 1));
        c.by_blocks.push_back(test_rng_below(rng, 2) != 0);
        for (uint32_t i = 0; i < row.n_tokens; i++) {
            c.batch.positions.push_back(row.first_position + i);
            c.batch.token_row.push_back(r);
        }
        c.n_tokens += row.n_tokens;
        c.batch.rows.push_back(row);
    }
    c.launched = c.n_tokens + random_count(rng, 5) - 1;
    c.batch.counts.n_tokens = c.n_tokens;
    c.batch.counts.n_rows = n_rows;
    for (uint32_t t = c.n_tokens; t < c.launched; t++) { /* nobody's, but they would be written */
        c.batch.positions.push_back(0);
        c.batch.token_row.push_back(0);
    }
    c.batch.tokens = {0};
    c.batch.token_from = c.batch.row_slot = c.batch.logit_tokens = {0};
    c.table = random_floats(rng, static_cast<size_t>(MAX_POSITION) * head_dim, 1.2);
    const uint32_t heads = c.attention.n_heads + 2 * layout->n_kv_heads;
    c.qkv = random_acts(rng, dtype, static_cast<size_t>(c.launched) * heads * head_dim, 3);
    for (size_t i = 0; i < 4 * head_dim; i++) { /* a value may be any bits */
        const uint32_t token = static_cast<uint32_t>(test_rng_below(rng, c.launched));
        const size_t v =
            (c.attention.n_heads + layout->n_kv_heads) * head_dim + test_rng_below(rng, layout->n_kv_heads * head_dim);
        c.qkv[static_cast<size_t>(token) * heads * head_dim + v] = static_cast<uint16_t>(test_rng_next(rng));
    }
    return c;
}

/* Which group of KV memory is group g of a row: the first half of memory is for contiguous rows, the second for blocks. */
static size_t place(const rope_case &c, uint32_t row, uint32_t g) {
    const size_t at = static_cast<size_t>(row) * c.n_groups + g;
    return c.by_blocks[row] ? c.order.size() + c.order[at] : at;
}

struct outcome {
    std::vector<uint16_t> qkv, kv;
};

static std::vector<uint16_t> flat(const outcome &o) {
    std::vector<uint16_t> all = o.qkv;
    all.insert(all.end(), o.kv.begin(), o.kv.end());
    return all;
}

static outcome run(rope_case c) {
    const size_t group = group_elements(c), n_groups = 2 * c.order.size();
    device_array<uint16_t> qkv(c.qkv.size()), kv(n_groups * group);
    device_array<float> table(c.table);
    std::vector<uint8_t *> addresses(c.order.size());
    device_array<uint8_t *> blocks(addresses.size());
    for (uint32_t r = 0; r < c.batch.rows.size(); r++) {
        for (uint32_t g = 0; g < c.n_groups; g++) {
            addresses[r * c.n_groups + g] = reinterpret_cast<uint8_t *>(kv.p + place(c, r, g) * group);
        }
        kv_view view = {nullptr, blocks.p + r * c.n_groups};
        if (!c.by_blocks[r]) {
            view = {addresses[r * c.n_groups], nullptr};
        }
        c.batch.rows[r].kv = view;
    }
    blocks.put(addresses);
    device_batch on_device(c.batch);
    const cuda_batch view = on_device.view();
    outcome o;
    in_each_order([&] {
        qkv.put(c.qkv);
        CHECK_CUDA(cudaMemset(kv.p, 0xff, kv.n * sizeof *kv.p));
        CHECK_CUDA(cuda_rope_write(nullptr, c.dtype, &view, c.launched, &c.attention, table.p, qkv.p));
        o.qkv = qkv.get();
        o.kv = kv.get();
        return flat(o);
    });
    return o;
}

/* Compares what should be numbers, and marks it off, so that what is left is what it was before. */
class comparison {
  public:
    comparison(const rope_case &one) : c(one), half(one.attention.layout.head_dim / 2) {}

    /* Two products of f32 with one rounding each, or one for both, then one to act. */
    void rotated(const uint16_t *x, uint32_t position, uint16_t *got) {
        for (uint32_t i = 0; i < half; i++) {
            const float *turn = &c.table[(static_cast<size_t>(position) * half + i) * 2];
            const double a = act_value(c.dtype, x[i]), b = act_value(c.dtype, x[i + half]);
            const double cosine = static_cast<double>(turn[0]), sine = static_cast<double>(turn[1]);
            number(a * cosine - b * sine, fabs(a * cosine) + fabs(b * sine), &got[i]);
            number(b * cosine + a * sine, fabs(b * cosine) + fabs(a * sine), &got[i + half]);
        }
    }
    void copied(const uint16_t *x, uint16_t *got) {
        for (uint32_t i = 0; i < 2 * half; i++) {
            wrong += got[i] != x[i];
            got[i] = 0xffff;
        }
    }
    size_t wrong = 0;

  private:
    void number(double want, double scale, uint16_t *got) {
        const double error = fabs(act_value(c.dtype, *got) - want);
        wrong += !(error <= fabs(want) * act_unit(c.dtype) + scale * 0x1p-22 + act_tiny(c.dtype));
        *got = 0xffff;
    }
    const rope_case &c;
    uint32_t half;
};

static void check_case(const rope_case &c) {
    const uint32_t d = c.attention.layout.head_dim, n_q = c.attention.n_heads, n_kv = c.attention.layout.n_kv_heads;
    const size_t width = (n_q + 2 * n_kv) * d;
    outcome o = run(c);
    comparison check(c);
    for (uint32_t t = 0; t < c.n_tokens; t++) {
        const uint16_t *x = &c.qkv[t * width];
        const uint32_t position = c.batch.positions[t];
        for (uint32_t h = 0; h < n_q; h++) {
            check.rotated(x + h * d, position, &o.qkv[t * width + h * d]);
            memcpy(&o.qkv[t * width + h * d], x + h * d, d * sizeof *x);
        }
        const size_t group = place(c, c.batch.token_row[t], position / KV_GROUP_TOKENS) * group_elements(c);
        for (uint32_t h = 0; h < n_kv; h++) {
            const size_t run = group + (c.attention.layer * n_kv + h) * 2 * KV_GROUP_TOKENS * d;
            const size_t key = run + position % KV_GROUP_TOKENS * d, value = key + KV_GROUP_TOKENS * d;
            check.rotated(x + (n_q + h) * d, position, &o.kv[key]);
            check.copied(x + (n_q + n_kv + h) * d, &o.kv[value]);
        }
    }
    const size_t touched = o.kv.size() - static_cast<size_t>(std::count(o.kv.begin(), o.kv.end(), 0xffff));
    CHECK_MSG(check.wrong == 0, "%s, heads %u + 2 x %u of %u: %zu wrong", act_name(c.dtype), n_q, n_kv, d, check.wrong);
    CHECK_MSG(touched == 0, "%s, heads %u + 2 x %u of %u: %zu elsewhere", act_name(c.dtype), n_q, n_kv, d, touched);
    CHECK_MSG(same_bits(o.qkv, c.qkv), "%s, heads %u + 2 x %u of %u", act_name(c.dtype), n_q, n_kv, d);
}

static void batches_are_near(void) {
    test_rng rng = {test_seed(31)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint64_t round = 0; round < test_scaled(2); round++) {
            for (uint32_t head_dim : {2u, 6u, 8u, 16u, 24u, 64u, 80u, 128u, 136u, 256u}) {
                check_case(random_case(&rng, dtype, head_dim));
            }
        }
    });
}

/* A token that stands at the same position gets the same bits, whatever else is in the batch. */
static void tokens_stand_alone(void) {
    test_rng rng = {test_seed(32)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t head_dim : {8u, 80u, 128u}) {
            const rope_case c = random_case(&rng, dtype, head_dim);
            const size_t width = c.qkv.size() / c.launched, group = group_elements(c);
            const outcome together = run(c);
            for (uint32_t t = 0; t < c.n_tokens; t += 1 + c.n_tokens / 6) {
                rope_case one = c;
                one.n_tokens = one.launched = one.batch.counts.n_tokens = 1;
                one.batch.positions = {c.batch.positions[t]};
                one.batch.token_row = {c.batch.token_row[t]};
                one.qkv.assign(&c.qkv[t * width], &c.qkv[t * width] + width);
                const outcome alone = run(one);
                CHECK_MSG(memcmp(alone.qkv.data(), &together.qkv[t * width], width * 2) == 0, "token %u of %u", t,
                          c.n_tokens);
                const size_t at = place(c, one.batch.token_row[0], one.batch.positions[0] / KV_GROUP_TOKENS) * group;
                size_t wrong = 0, written = 0;
                for (size_t i = at; i < at + group; i++) {
                    written += alone.kv[i] != 0xffff;
                    wrong += alone.kv[i] != 0xffff && alone.kv[i] != together.kv[i];
                }
                CHECK_MSG(wrong == 0 && written > 0, "token %u of %u", t, c.n_tokens);
            }
        }
    });
}

static void refusals(void) {
    test_rng rng = {1};
    const rope_case c = random_case(&rng, KERNELS_F16, 16);
    device_batch on_device(c.batch);
    const cuda_batch b = on_device.view();
    device_array<float> memory(64);
    float *p = memory.p;
    auto answer = [&](kernels_dtype dtype, const kernels_attention &attention, const float *table, void *qkv) {
        return cuda_rope_write(nullptr, dtype, &b, 1, &attention, table, qkv);
    };
    const cudaError_t no = cudaErrorInvalidValue;
    CU_ASSERT_EQUAL(answer(KERNELS_F32, c.attention, p, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_F16, c.attention, p + 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_F16, c.attention, p, p + 1), no);
    CU_ASSERT_EQUAL(answer(KERNELS_F16, c.attention, p, nullptr), no);
    auto changed = [&](void (*change)(kernels_attention *)) {
        kernels_attention other = c.attention;
        change(&other);
        return answer(KERNELS_F16, other, p, p);
    };
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) { a->layer = a->layout.n_layers; }), no);
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) { a->n_heads = 0; }), no);
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) { a->n_heads = 65537; }), no);
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) { a->layout.n_kv_heads = 0; }), no);
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) { a->layout.element_bytes = 4; }), no);
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) { a->layout.group_bytes += 16; }), no);
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) { a->layout.head_dim = 0; }), no);
    CU_ASSERT_EQUAL(changed([](kernels_attention *a) {
                        a->layout.head_dim = 15;
                        a->layout.group_bytes = a->layout.group_bytes / 16 * 15;
                    }),
                    no);
    CHECK_CUDA(cuda_rope_write(nullptr, KERNELS_F16, &b, 0, &c.attention, nullptr, nullptr));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"queries and keys are rotated, values copied, nothing else touched", batches_are_near},
        {"a token is the same alone and in a batch, to the bit", tokens_stand_alone},
        {"what cannot be is refused; no tokens are no work", refusals},
    };
    return test_main("rope_write_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
