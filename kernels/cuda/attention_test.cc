/*
 * attention: against a reference in double on random shapes, and the promise to the bit: a token gets the same however it is
 * computed, in a prefill, in chunks cut anywhere or as decode steps, alone or among others, with whatever plan.
 *
 * Keys and values that no token of a batch may see are NaN, groups of them are not there at all.
 */
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/kernel_testing.hh"

#include <algorithm>
#include <memory>
#include <string>

struct shape {
    kernels_dtype dtype;
    uint32_t head_dim, n_kv_heads, n_group, window;
    bool table;
};

static std::string text_of(const shape &s) {
    return std::string(act_name(s.dtype)) + " D " + std::to_string(s.head_dim) + ", " + std::to_string(s.n_kv_heads) +
           " x " + std::to_string(s.n_group) + " heads, window " + std::to_string(s.window) +
           (s.table ? ", table" : ", vmm");
}

static const uint32_t N_LAYERS = 2, LAYER = 1; /* the other layer's memory is NaN */
static const uint16_t NOT_A_NUMBER = 0xffff;
static const float SCALE_OF_64 = 0.125f;

static float scale_of(const shape &s) { return SCALE_OF_64 * sqrtf(64.0f / static_cast<float>(s.head_dim)); }

static kv_layout layout_of(const shape &s) {
    kv_layout layout = {};
    layout.n_layers = N_LAYERS;
    layout.n_kv_heads = s.n_kv_heads;
    layout.head_dim = s.head_dim;
    layout.element_bytes = 2;
    layout.group_bytes = static_cast<uint64_t>(N_LAYERS) * s.n_kv_heads * 2 * KV_GROUP_TOKENS * s.head_dim * 2;
    return layout;
}

/* A sequence's queries [token][head][D], keys and values [token][KV head][D]. */
struct sequence {
    uint32_t n;
    std::vector<uint16_t> q, k, v;
};

static sequence random_sequence(test_rng *rng, const shape &s, uint32_t n, double amplitude) {
    sequence q = {n, {}, {}, {}};
    const size_t heads = static_cast<size_t>(n) * s.n_kv_heads;
    q.q = random_acts(rng, s.dtype, heads * s.n_group * s.head_dim, amplitude);
    q.k = random_acts(rng, s.dtype, heads * s.head_dim, amplitude);
    q.v = random_acts(rng, s.dtype, heads * s.head_dim, 1);
    return q;
}

/* Tokens [first, first + n) of a sequence. */
struct part {
    const sequence *of;
    uint32_t first, n;
};

static uint32_t seen_begin(const shape &s, uint32_t position) {
    return s.window != 0 && position + 1 > s.window ? position + 1 - s.window : 0;
}

/*
 * A row's KV memory: the groups that its tokens see and no others. In a table the others' addresses are no addresses; a range
 * begins and ends with the groups that are seen.
 */
class row_memory {
  public:
    row_memory(test_rng *rng, const shape &s, const part &p) {
        const kv_layout layout = layout_of(s);
        const uint32_t begin = seen_begin(s, p.first), end = p.first + p.n;
        const uint32_t g0 = begin / KV_GROUP_TOKENS, g1 = (end + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS;
        const size_t group_elements = layout.group_bytes / 2, run = static_cast<size_t>(KV_GROUP_TOKENS) * s.head_dim;
        std::vector<uint32_t> place(g1);
        for (uint32_t g = g0; g < g1; g++) {
            place[g] = g - g0;
            if (s.table) {
                const uint32_t other = g0 + static_cast<uint32_t>(test_rng_below(rng, g - g0 + 1));
                std::swap(place[g], place[other]);
            }
        }
        std::vector<uint16_t> image((g1 - g0) * group_elements, NOT_A_NUMBER);
        for (uint32_t t = begin; t < end; t++) {
            for (uint32_t h = 0; h < s.n_kv_heads; h++) {
                uint16_t *to = image.data() + place[t / KV_GROUP_TOKENS] * group_elements +
                               (LAYER * s.n_kv_heads + h) * 2 * run + t % KV_GROUP_TOKENS * s.head_dim;
                const size_t from = (static_cast<size_t>(t) * s.n_kv_heads + h) * s.head_dim;
                std::copy_n(p.of->k.begin() + static_cast<ptrdiff_t>(from), s.head_dim, to);
                std::copy_n(p.of->v.begin() + static_cast<ptrdiff_t>(from), s.head_dim, to + run);
            }
        }
        groups.reset(new device_array<uint16_t>(image));
        const uintptr_t base = reinterpret_cast<uintptr_t>(groups->p);
        if (!s.table) {
            view.base = reinterpret_cast<uint8_t *>(base - g0 * layout.group_bytes);
            return;
        }
        std::vector<uint8_t *> addresses(g1, reinterpret_cast<uint8_t *>(uintptr_t(16)));
        for (uint32_t g = g0; g < g1; g++) {
            addresses[g] = reinterpret_cast<uint8_t *>(base + place[g] * layout.group_bytes);
        }
        table.reset(new device_array<uint8_t *>(addresses));
        view.blocks = table->p;
    }
    kv_view view = {};

  private:
    std::unique_ptr<device_array<uint16_t>> groups;
    std::unique_ptr<device_array<uint8_t *>> table;
};

/* Parts of sequences, one row each, in one launch. */
class step {
  public:
    step(test_rng *random, const shape &of, const std::vector<part> &parts) : rng(random), s(of) {
        const uint32_t n_heads = s.n_kv_heads * s.n_group;
        width = n_heads * s.head_dim;
        for (const part &p : parts) {
            memory.emplace_back(new row_memory(rng, s, p));
            kernels_row row = {};
            row.kv = memory.back()->view;
            row.first_token = b.counts.n_tokens;
            row.n_tokens = p.n;
            row.first_position = p.first;
            b.rows.push_back(row);
            b.counts.n_tokens += p.n;
            b.counts.n_rows++;
            limits.session_len = std::max(limits.session_len, p.first + p.n);
            max_row_tokens = std::max(max_row_tokens, p.n);
            for (uint32_t t = p.first; t < p.first + p.n; t++) {
                const auto q = p.of->q.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(t) * width);
                qkv.insert(qkv.end(), q, q + width);
                /* Keys and values are in the cache by now. */
                qkv.insert(qkv.end(), static_cast<size_t>(2) * s.n_kv_heads * s.head_dim, NOT_A_NUMBER);
            }
        }
        b.tokens = {0};
        b.token_from = b.positions = b.token_row = b.row_slot = b.logit_tokens = {0};
        limits.max_step_tokens = b.counts.n_tokens;
        limits.max_batch_size = b.counts.n_rows;
        limits.n_heads = n_heads;
        limits.layout = layout_of(s);
        attention.layout = limits.layout;
        attention.layer = LAYER;
        attention.n_heads = n_heads;
        attention.window = s.window;
        attention.scale = scale_of(s);
    }

    /* The outputs [token][head * D], by a plan for so many processors. */
    std::vector<uint16_t> run(uint32_t n_processors) {
        cuda_attention_sizes sizes;
        limits.window =
            test_rng_below(rng, 3) == 0 ? 0 : s.window; /* a plan for all layers serves those with a window */
        cuda_attention_sizes_get(&limits, n_processors, &sizes);
        attend.resize(sizes.max_attend);
        merge.resize(sizes.max_merge + 1);
        kernels_batch batch = {};
        batch.n_tokens = b.counts.n_tokens;
        batch.n_rows = b.counts.n_rows;
        batch.rows = b.rows.data();
        cuda_attention_plan(&limits, n_processors, &batch, attend.data(), &b.counts.n_attend, merge.data(),
                            &b.counts.n_merge);
        /* Grids for what there is, as in a step, or for what there could be, as in a graph. */
        const bool graph = test_rng_below(rng, 2) != 0;
        return run_pieces(graph ? sizes.max_attend : b.counts.n_attend, graph ? sizes.max_merge : b.counts.n_merge,
                          sizes.partial_bytes / sizeof(float) + 4, nullptr);
    }

    /* The same by pieces of the caller's, who gets the partial results. */
    std::vector<uint16_t> run_pieces(const std::vector<cuda_attend_work> &pieces, std::vector<float> *partials) {
        attend = pieces;
        merge.resize(1);
        b.counts.n_attend = static_cast<uint32_t>(pieces.size());
        b.counts.n_merge = 0;
        return run_pieces(b.counts.n_attend, 0, partials->size(), partials);
    }

  private:
    std::vector<uint16_t> run_pieces(uint32_t max_attend, uint32_t max_merge, size_t n_floats,
                                     std::vector<float> *partials) {
        device_batch on_device(b);
        device_array<uint16_t> in(qkv);
        device_array<uint16_t> out(std::vector<uint16_t>((b.counts.n_tokens + 1) * static_cast<size_t>(width), 7));
        device_array<cuda_attend_work> device_attend(attend);
        device_array<cuda_merge_work> device_merge(merge);
        device_array<float> device_partials(n_floats);
        const cuda_batch view = on_device.view();
        CHECK_CUDA(cuda_attention(nullptr, s.dtype, &view, max_row_tokens, &attention, in.p, out.p, device_attend.p,
                                  max_attend, device_merge.p, max_merge, device_partials.p));
        std::vector<uint16_t> got = out.get();
        CHECK_MSG(std::all_of(got.end() - width, got.end(), [](uint16_t v) { return v == 7; }),
                  "wrote behind the batch");
        got.resize(got.size() - width);
        const cuda_counts after = on_device.counts.get()[0];
        CHECK_MSG(after.tickets[0] == 0 && after.tickets[1] == 0, "%u and %u tickets", after.tickets[0],
                  after.tickets[1]);
        if (partials != nullptr) {
            *partials = device_partials.get();
        }
        return got;
    }

    test_rng *rng;
    shape s;
    uint32_t width = 0, max_row_tokens = 0;
    test_batch b;
    kernels_limits limits = {};
    kernels_attention attention = {};
    std::vector<std::unique_ptr<row_memory>> memory;
    std::vector<uint16_t> qkv;
    std::vector<cuda_attend_work> attend;
    std::vector<cuda_merge_work> merge;
};

static std::vector<uint16_t> attend(test_rng *rng, const shape &s, const std::vector<part> &parts,
                                    uint32_t n_processors) {
    return step(rng, s, parts).run(n_processors);
}

/* ---------------------------------------------------------------- reference */

/*
 * One head's output of a token, and how far a result may be off: weights and the result are rounded to the type (and the
 * smallest weights away), scores and sums are float. slack: of scores, relative to Σ |q k|; of a tensor core's sums too.
 */
static void reference(const shape &s, const sequence &q, uint32_t token, uint32_t head, std::vector<double> *out,
                      std::vector<double> *error) {
    const uint32_t kv_head = head / s.n_group, begin = seen_begin(s, token);
    const double unit = act_unit(s.dtype), slack = (s.head_dim + 8) * 0x1p-22;
    const size_t at = (static_cast<size_t>(token) * s.n_kv_heads * s.n_group + head) * s.head_dim;
    std::vector<double> score(token + 1);
    double best = -INFINITY, worst_score = 0, sum = 0;
    for (uint32_t t = begin; t <= token; t++) {
        const size_t key = (static_cast<size_t>(t) * s.n_kv_heads + kv_head) * s.head_dim;
        double dot = 0, size = 0;
        for (uint32_t i = 0; i < s.head_dim; i++) {
            const double product = act_value(s.dtype, q.q[at + i]) * act_value(s.dtype, q.k[key + i]);
            dot += product;
            size += fabs(product);
        }
        score[t] = dot * static_cast<double>(scale_of(s));
        worst_score = std::max(worst_score, size * static_cast<double>(scale_of(s)));
        best = std::max(best, score[t]);
    }
    out->assign(s.head_dim, 0);
    error->assign(s.head_dim, 0);
    for (uint32_t t = begin; t <= token; t++) {
        sum += exp(score[t] - best);
    }
    const double of_weight = unit + 2 * (worst_score * slack + 0x1p-18);
    for (uint32_t t = begin; t <= token; t++) {
        const size_t value = (static_cast<size_t>(t) * s.n_kv_heads + kv_head) * s.head_dim;
        for (uint32_t i = 0; i < s.head_dim; i++) {
            const double v = act_value(s.dtype, q.v[value + i]), w = exp(score[t] - best) / sum;
            (*out)[i] += w * v;
            (*error)[i] += (w * of_weight + act_tiny(s.dtype)) * fabs(v);
        }
    }
    for (uint32_t i = 0; i < s.head_dim; i++) {
        (*error)[i] += unit * fabs((*out)[i]) + act_tiny(s.dtype);
    }
}

/* Compares `got` of one part, or of some of its tokens where it is long. */
static void check_part(test_rng *rng, const shape &s, const part &p, const uint16_t *got) {
    const uint32_t n_heads = s.n_kv_heads * s.n_group;
    std::vector<double> want, error;
    for (uint32_t t = 0; t < p.n; t += 1 + static_cast<uint32_t>(test_rng_below(rng, p.n / 8 + 1))) {
        for (uint32_t h = static_cast<uint32_t>(test_rng_below(rng, 3)); h < n_heads; h += 1 + n_heads / 4) {
            reference(s, *p.of, p.first + t, h, &want, &error);
            for (uint32_t i = 0; i < s.head_dim; i++) {
                const double v = act_value(s.dtype, got[(static_cast<size_t>(t) * n_heads + h) * s.head_dim + i]);
                if (!CHECK_MSG(fabs(v - want[i]) <= error[i],
                               "%s: token %u of %u + %u, head %u, element %u: %g for %g, %g off", text_of(s).c_str(), t,
                               p.first, p.n, h, i, v, want[i], fabs(v - want[i]) / error[i])) {
                    return;
                }
            }
        }
    }
}

static void check_parts(test_rng *rng, const shape &s, const std::vector<part> &parts,
                        const std::vector<uint16_t> &got) {
    size_t at = 0;
    for (const part &p : parts) {
        check_part(rng, s, p, got.data() + at);
        at += static_cast<size_t>(p.n) * s.n_kv_heads * s.n_group * s.head_dim;
    }
}

/* ---------------------------------------------------------------- tests */

static const uint32_t head_dims[] = {8, 16, 64, 80, 96, 128, 256};
static const uint32_t groups[] = {1, 2, 3, 4, 7, 8, 16, 24};

static shape random_shape(test_rng *rng, uint32_t head_dim, uint32_t n_group) {
    shape s = {};
    s.dtype = test_rng_below(rng, 2) != 0 ? KERNELS_BF16 : KERNELS_F16;
    s.head_dim = head_dim;
    s.n_group = n_group;
    s.n_kv_heads = n_group < 4 ? random_count(rng, 2) : 1;
    s.window = test_rng_below(rng, 3) == 0 ? random_count(rng, 300) : 0;
    s.table = test_rng_below(rng, 2) != 0;
    return s;
}

/* Decoding rows, short and long chunks behind a cached past, in random order. */
static std::vector<part> random_parts(test_rng *rng, const std::vector<sequence> &sequences) {
    std::vector<part> parts;
    for (const sequence &q : sequences) {
        const uint32_t most = test_rng_below(rng, 3) == 0 ? 1 : test_rng_below(rng, 2) == 0 ? 6 : 70;
        const uint32_t n = std::min(q.n, random_count(rng, most));
        const uint32_t first = static_cast<uint32_t>(test_rng_below(rng, q.n - n + 1));
        parts.insert(parts.begin() + static_cast<ptrdiff_t>(test_rng_below(rng, parts.size() + 1)), {&q, first, n});
    }
    return parts;
}

static void matches_the_reference(void) {
    test_rng rng = {test_seed(21)};
    size_t shapes = 0;
    for (uint64_t round = 0; round < test_scaled(2); round++) {
        for (uint32_t head_dim : head_dims) {
            for (uint32_t i = 0; i < 3; i++, shapes++) {
                const shape s = random_shape(&rng, head_dim, groups[shapes % 8]);
                std::vector<sequence> sequences;
                for (uint32_t n = random_count(&rng, 4); n > 0; n--) {
                    sequences.push_back(
                        random_sequence(&rng, s, random_count(&rng, n == 1 ? 600 : 100), 1 + 2 * test_rng_unit(&rng)));
                }
                const std::vector<part> parts = random_parts(&rng, sequences);
                const uint32_t n_processors = test_rng_below(&rng, 2) != 0 ? 132 : random_count(&rng, 4);
                const std::vector<uint16_t> got = attend(&rng, s, parts, n_processors);
                check_parts(&rng, s, parts, got);
            }
        }
    }
}

/* The bits of tokens [first, first + n) are the same as in `whole`, the outputs of all tokens. */
static bool same_as(const shape &s, const std::vector<uint16_t> &whole, const uint16_t *got, uint32_t first,
                    uint32_t n) {
    const size_t width = static_cast<size_t>(s.n_kv_heads) * s.n_group * s.head_dim;
    return memcmp(whole.data() + first * width, got, n * width * sizeof *got) == 0;
}

/* A sequence in chunks cut anywhere, each among rows of others. */
static void compute_in_chunks(test_rng *rng, const shape &s, const sequence &q, const std::vector<uint16_t> &whole,
                              uint32_t most, uint32_t first) {
    const size_t width = static_cast<size_t>(s.n_kv_heads) * s.n_group * s.head_dim;
    for (uint32_t t = first; t < q.n;) {
        std::vector<part> parts;
        std::vector<sequence> others;
        others.reserve(2);
        const uint32_t n = std::min(q.n - t, random_count(rng, most));
        for (uint32_t i = static_cast<uint32_t>(test_rng_below(rng, 3)); i > 0; i--) {
            others.push_back(random_sequence(rng, s, random_count(rng, 40), 3));
            parts.push_back({&others.back(), 0, others.back().n});
        }
        const size_t mine = test_rng_below(rng, parts.size() + 1);
        parts.insert(parts.begin() + static_cast<ptrdiff_t>(mine), {&q, t, n});
        size_t at = 0;
        for (size_t i = 0; i < mine; i++) {
            at += parts[i].n;
        }
        const uint32_t n_processors = test_rng_below(rng, 2) != 0 ? 132 : random_count(rng, 4);
        const std::vector<uint16_t> got = attend(rng, s, parts, n_processors);
        CHECK_MSG(same_as(s, whole, got.data() + at * width, t, n), "%s: tokens %u + %u of %u, %u processors",
                  text_of(s).c_str(), t, n, q.n, n_processors);
        t += n;
    }
}

static void the_same_bits_however_it_is_cut(void) {
    test_rng rng = {test_seed(22)};
    for (uint64_t round = 0; round < test_scaled(6); round++) {
        const uint32_t of = static_cast<uint32_t>(round);
        shape s = random_shape(&rng, head_dims[(of + 2) % 7], groups[(of * 3 + 1) % 8]);
        s.n_kv_heads = 1;
        const sequence q = random_sequence(&rng, s, 530 + random_count(&rng, 60), 2);
        const uint32_t first = q.n - std::min(q.n, s.n_group > 4 ? 60u : 230u);
        const std::vector<uint16_t> last = attend(&rng, s, {{&q, first, q.n - first}}, 4);
        std::vector<uint16_t> whole(static_cast<size_t>(first) * s.n_group * s.head_dim);
        whole.insert(whole.end(), last.begin(), last.end());
        compute_in_chunks(&rng, s, q, whole, 120, first);
        compute_in_chunks(&rng, s, q, whole, 9, q.n - 30);
        compute_in_chunks(&rng, s, q, whole, 1, q.n - 10);
    }
}

static void the_same_bits_in_other_orders(void) {
    test_rng rng = {test_seed(23)};
    for (uint32_t head_dim : {40u, 80u, 128u, 256u}) {
        shape s = random_shape(&rng, head_dim, head_dim == 80 ? 20 : 3);
        std::vector<sequence> sequences;
        for (uint32_t n : {1u, 290u, 350u}) {
            sequences.push_back(random_sequence(&rng, s, n, 2));
        }
        const std::vector<part> parts = {{&sequences[0], 0, 1}, {&sequences[1], 255, 35}, {&sequences[2], 349, 1}};
        in_each_order([&] {
            test_rng same = {5};
            return attend(&same, s, parts, 132);
        });
    }
}

/* What is rounded away in the output: partial results, maximum, sum and output, are the same floats in both kernels. */
static void small_and_tall_pieces_leave_the_same_floats(void) {
    test_rng rng = {test_seed(25)};
    for (uint64_t round = 0; round < test_scaled(14); round++) {
        shape s = random_shape(&rng, head_dims[round % 7], 1 + static_cast<uint32_t>(test_rng_below(&rng, 5)));
        s.n_kv_heads = 1;
        const sequence q = random_sequence(&rng, s, 270 + random_count(&rng, 300), 2);
        const uint32_t n_row = random_count(&rng, 40), n = random_count(&rng, std::min(n_row, 16 / s.n_group));
        const uint32_t first = q.n - n_row, from = static_cast<uint32_t>(test_rng_below(&rng, n_row - n + 1));
        s.window = round % 3 == 0 ? (first + from) % CUDA_CHUNK_TOKENS + 2 : s.window; /* ends where a chunk does */
        const uint32_t n_chunks = (q.n + CUDA_CHUNK_TOKENS - 1) / CUDA_CHUNK_TOKENS;
        const size_t floats = CUDA_PARTIAL_FLOATS(s.head_dim), n_small = static_cast<size_t>(n_chunks) * n * s.n_group;
        cuda_attend_work small = {}, tall = {};
        small.first_token = from;
        small.n_tokens = n;
        small.n_chunks = tall.n_chunks = n_chunks;
        small.n_small = 1;
        tall.n_tokens = n_row;
        tall.partial = static_cast<uint32_t>(n_small);
        std::vector<float> partials((n_small + static_cast<size_t>(n_chunks) * n_row * s.n_group) * floats);
        /* Two rows, of which the first is long enough for the launch of tall pieces. */
        const sequence other = random_sequence(&rng, s, 20, 2);
        small.row = tall.row = 1;
        step(&rng, s, {{&other, 0, 20}, {&q, first, n_row}}).run_pieces({small, tall}, &partials);
        for (uint32_t i = 0; i < n * s.n_group; i++) {
            const uint32_t position = first + from + i / s.n_group;
            for (uint32_t chunk = seen_begin(s, position) / CUDA_CHUNK_TOKENS; chunk <= position / CUDA_CHUNK_TOKENS;
                 chunk++) {
                const float *a = partials.data() + (chunk * n * s.n_group + i) * floats;
                const float *b =
                    partials.data() + (n_small + chunk * n_row * s.n_group + from * s.n_group + i) * floats;
                CHECK_MSG(memcmp(a, b, (s.head_dim + 2) * sizeof *a) == 0,
                          "%s: position %u, chunk %u: maximum %a and %a, sum %a and %a", text_of(s).c_str(), position,
                          chunk, static_cast<double>(a[s.head_dim]), static_cast<double>(b[s.head_dim]),
                          static_cast<double>(a[s.head_dim + 1]), static_cast<double>(b[s.head_dim + 1]));
            }
        }
    }
}

/* Windows and chunks of queries that begin and end at, before and behind the ends of blocks, chunks and groups. */
static void windows_of_every_kind(void) {
    test_rng rng = {test_seed(26)};
    for (uint32_t window : {1u, 2u, 16u, 63u, 64u, 65u, 100u, 255u, 256u, 257u, 330u}) {
        shape s = random_shape(&rng, 16, 2);
        s.window = window;
        const sequence q = random_sequence(&rng, s, 600, 2);
        std::vector<part> parts;
        for (uint32_t edge : {16u, 64u, 256u, 320u, 512u}) {
            for (uint32_t n : {1u, 3u, 8u, 20u}) {
                const uint32_t at = edge + window % 64 + static_cast<uint32_t>(test_rng_below(&rng, 4)) - 2;
                parts.push_back({&q, at - std::min(at, n / 2), n});
            }
        }
        const std::vector<uint16_t> got = attend(&rng, s, parts, random_count(&rng, 3));
        check_parts(&rng, s, parts, got);
    }
}

/* So many rows that each CTA draws pieces beyond its first one, of both kinds; none is left out. */
static void ctas_draw_until_all_pieces_are_taken(void) {
    test_rng rng = {test_seed(27)};
    int n_processors = 0;
    CHECK_CUDA(cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, 0));
    for (uint32_t n : {1u, 9u}) { /* tokens of a row: small pieces, tall ones */
        shape s = random_shape(&rng, 16, 2);
        s.n_kv_heads = 1;
        const sequence q = random_sequence(&rng, s, 30, 2);
        std::vector<part> parts;
        while (parts.size() < static_cast<size_t>(n_processors) * (n == 1 ? 4 : 2)) {
            parts.push_back({&q, static_cast<uint32_t>(test_rng_below(&rng, q.n - n + 1)), n});
        }
        check_parts(&rng, s, parts, attend(&rng, s, parts, static_cast<uint32_t>(n_processors)));
    }
}

/* Where a token's heads are more than a tile has queries a CTA takes one tile of the piece after the other. */
static void heads_beyond_a_tile_are_computed_in_tiles(void) {
    test_rng rng = {test_seed(28)};
    for (uint32_t head_dim : {16u, 256u}) {
        shape s = random_shape(&rng, head_dim, CUDA_TALL_QUERIES(head_dim) * 2 + 5);
        s.n_kv_heads = 1;
        const sequence q = random_sequence(&rng, s, 70, 2);
        const std::vector<part> parts = {{&q, 68, 2}, {&q, 20, 1}};
        const std::vector<uint16_t> got = in_each_order([&] {
            test_rng same = {6};
            return attend(&same, s, parts, 1);
        });
        check_parts(&rng, s, parts, got);
    }
}

/* So many partial results that a merge takes them in more stages than it has on their way at once. */
static void results_of_many_chunks_are_merged_in_stages(void) {
    test_rng rng = {test_seed(29)};
    const shape s = {KERNELS_F16, 8, 1, 4, 0, false};
    const sequence q = random_sequence(&rng, s, 5 * 32 * CUDA_CHUNK_TOKENS - 300, 3);
    for (uint32_t n : {33 * CUDA_CHUNK_TOKENS, q.n}) {
        const part last = {&q, n - 1, 1};
        check_part(&rng, s, last, attend(&rng, s, {last}, 132).data());
    }
}

/* What a token must not see does not reach it, even as the NaN that a weight of 0 times infinity would be. */
static void values_that_are_not_finite_reach_those_who_see_them(void) {
    test_rng rng = {test_seed(24)};
    for (uint32_t n_group : {1u, 2u, 16u}) {
        for (uint32_t n : {5u, 140u}) {
            shape s = random_shape(&rng, n_group == 2 ? 128 : n_group == 1 ? 256 : 64, n_group);
            s.n_kv_heads = 1;
            s.window = n_group == 2 ? 30 : 0;
            const sequence good = random_sequence(&rng, s, n, 2);
            sequence bad = good;
            const uint32_t at = n / 2;
            for (uint32_t i = 0; i < s.head_dim; i += 3) {
                bad.v[at * s.head_dim + i] = i % 2 != 0 ? NOT_A_NUMBER : act_bits(s.dtype, INFINITY);
            }
            const std::vector<uint16_t> want = attend(&rng, s, {{&good, 0, n}}, 4);
            const std::vector<uint16_t> got = attend(&rng, s, {{&bad, 0, n}}, 4);
            const size_t width = static_cast<size_t>(n_group) * s.head_dim;
            for (uint32_t t = 0; t < n; t++) {
                const bool sees = t >= at && (s.window == 0 || t < at + s.window);
                const bool same = same_as(s, want, got.data() + t * width, t, 1);
                CHECK_MSG(same != sees, "%s: token %u of %u %s the value of token %u", text_of(s).c_str(), t, n,
                          same ? "doesn't see" : "sees", at);
                if (sees) { /* alone it gets the same */
                    const std::vector<uint16_t> alone = attend(&rng, s, {{&bad, t, 1}}, 1);
                    CHECK_MSG(same_as(s, got, alone.data(), t, 1), "%s: token %u of %u", text_of(s).c_str(), t, n);
                    t += n / 4;
                }
            }
        }
    }
}

static void heads_that_are_too_wide_are_refused(void) {
    for (uint32_t head_dim = 0; head_dim < 300; head_dim++) {
        CU_ASSERT(cuda_attention_supports(head_dim) == (head_dim != 0 && head_dim <= 256 && head_dim % 8 == 0));
    }
    test_batch b;
    b.tokens = {0};
    b.token_from = b.positions = b.token_row = b.row_slot = b.logit_tokens = {0};
    b.rows = {kernels_row{}};
    device_batch on_device(b);
    const cuda_batch view = on_device.view();
    shape s = {KERNELS_BF16, 64, 1, 1, 0, false};
    kernels_attention attention = {};
    attention.layout = layout_of(s);
    attention.n_heads = 1;
    const auto status = [&](kernels_dtype dtype) {
        return cuda_attention(nullptr, dtype, &view, 1, &attention, nullptr, nullptr, nullptr, 1, nullptr, 0, nullptr);
    };
    CU_ASSERT(status(KERNELS_BF16) == cudaSuccess); /* no pieces */
    CU_ASSERT(status(KERNELS_F32) == cudaErrorInvalidValue);
    attention.layout.head_dim = 264;
    CU_ASSERT(status(KERNELS_BF16) == cudaErrorInvalidValue);
    attention.layout.head_dim = 64;
    attention.layout.element_bytes = 4;
    CU_ASSERT(status(KERNELS_BF16) == cudaErrorInvalidValue);
    CHECK_CUDA(cudaDeviceSynchronize());
}

static void shared_memory_is_read_without_conflicts(void) {
#ifdef SIMT_EMULATE
    CHECK_MSG(simt::stats().ldmatrix > 0 && simt::stats().ldmatrix_conflicts == 0, "%ld conflicts in %ld matrices",
              simt::stats().ldmatrix_conflicts, simt::stats().ldmatrix);
#else
    test_skip("counted under emulation");
#endif
}

static const test_case tests[] = {
    {"attention matches the reference", matches_the_reference},
    {"the same bits however a sequence is cut", the_same_bits_however_it_is_cut},
    {"small and tall pieces leave the same floats", small_and_tall_pieces_leave_the_same_floats},
    {"windows of every kind", windows_of_every_kind},
    {"the same bits in other orders of threads", the_same_bits_in_other_orders},
    {"CTAs draw until all pieces are taken", ctas_draw_until_all_pieces_are_taken},
    {"results of many chunks are merged in stages", results_of_many_chunks_are_merged_in_stages},
    {"heads beyond a tile are computed in tiles", heads_beyond_a_tile_are_computed_in_tiles},
    {"values that are not finite reach those who see them", values_that_are_not_finite_reach_those_who_see_them},
    {"head dims and types that there is no kernel for are refused", heads_that_are_too_wide_are_refused},
    {"shared memory is read without conflicts", shared_memory_is_read_without_conflicts},
};

int main(int argc, char **argv) {
    return test_main("attention_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
