/* sampling: the device chooses and reports what the host's sampler does, to the bit, whatever the row, the parameters, the batch. */
#include "kernels/cuda/choice.h"
#include "kernels/cuda/kernel_testing.hh"

#include "base/sampling_math.h"

#include <cstdio>

extern "C" {
#include "engine/sampler.h"
#include "engine/sampler_reference_testing.h"
}

namespace {

constexpr uint32_t SESSION_LEN = 96, SLOTS = 6;

/* One choice as the engine asks for it. */
struct question {
    perch_sampling sampling;
    std::vector<int32_t> banned, suppressed;
    uint32_t slot, n_prompt, n_tokens, completion;
    bool want_logprob;
};

perch_sampling plain_sampling(double temperature) {
    perch_sampling p = {};
    p.struct_size = sizeof p;
    p.temperature = temperature;
    p.top_p = p.typical_p = p.repetition_penalty = 1;
    return p;
}

question plain_question(const perch_sampling &sampling) { return {sampling, {}, {}, 0, 0, 0, 0, false}; }

/* What the report is made of. Largest logits that are zeros may differ in sign. */
bool same_numbers(const kernels_chosen &a, const kernels_chosen &b, bool want_logprobs) {
    if (a.token != b.token || a.n_top != b.n_top || a.total != b.total) {
        return false;
    }
    return a.token < 0 || !want_logprobs ||
           (memcmp(&a.logit, &b.logit, sizeof a.logit) == 0 && a.best == b.best &&
            memcmp(a.top_token, b.top_token, a.n_top * sizeof *a.top_token) == 0 &&
            memcmp(a.top_logit, b.top_logit, a.n_top * sizeof *a.top_logit) == 0);
}

/* Of one vocabulary: a sampler, and a device's memory, which is zeroed once and then used again and again. */
class bench {
  public:
    bench(uint32_t vocab, uint32_t most)
        : vocab_size(vocab), max_rows(most), scratch(cuda_choose_scratch_bytes(most, vocab)),
          history(std::vector<int32_t>(SLOTS * SESSION_LEN)) {
        perch_error err;
        CHECK_CUDA(cudaMemset(scratch.p, 0, scratch.n));
        CHECK_MSG(sampler_create(vocab, &host, &err) == PERCH_OK, "%s", err.message);
    }
    ~bench() { sampler_destroy(host); }
    bench(const bench &) = delete;
    bench &operator=(const bench &) = delete;

    void set_history(const std::vector<int32_t> &tokens) { /* [SLOTS][SESSION_LEN] */
        tokens_of_slots = tokens;
        history.put(tokens);
    }

    /* Row i of logits goes with question i; the device gets the rows in another order. */
    std::vector<kernels_chosen> ask(const std::vector<std::vector<float>> &rows,
                                    const std::vector<question> &questions) {
        const uint32_t n = static_cast<uint32_t>(rows.size());
        std::vector<float> logits(static_cast<size_t>(n) * vocab_size);
        std::vector<cuda_choice> choices(n);
        std::vector<int32_t> bans(n * CUDA_MAX_BANS);
        uint32_t n_bans = 0, needs = 0;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t at = n - 1 - i;
            std::copy(rows[i].begin(), rows[i].end(), logits.begin() + static_cast<size_t>(at) * vocab_size);
            perch_sampling sampling = sampling_of(questions[i]);
            kernels_choice choice = {at,
                                     questions[i].slot,
                                     questions[i].completion,
                                     questions[i].n_prompt,
                                     questions[i].n_tokens,
                                     &sampling,
                                     questions[i].suppressed.data(),
                                     static_cast<uint32_t>(questions[i].suppressed.size()),
                                     questions[i].want_logprob};
            CHECK_MSG(cuda_can_choose(&choice), "question %u", i);
            n_bans = cuda_choice_fill(&choice, vocab_size, n_bans, &choices[i], bans.data());
            needs |= choices[i].needs;
        }
        device_array<float> device_logits(logits);
        device_array<cuda_choice> device_choices(choices);
        device_array<int32_t> device_bans(bans);
        device_array<kernels_chosen> chosen(n);
        auto result = in_each_order([&] {
            chosen.put(std::vector<kernels_chosen>(n));
            CHECK_CUDA(cuda_choose(nullptr, device_logits.p, vocab_size, device_choices.p, device_bans.p, n, needs,
                                   history.p, SESSION_LEN, scratch.p, chosen.p));
            return chosen.get();
        });
        CHECK_MSG(same_bits(device_logits.get(), logits), "the logits were changed");
        return result;
    }

    /* The same of the host, and that it is the same. Returns how many had a token left. */
    uint32_t compare(const std::vector<std::vector<float>> &rows, const std::vector<question> &questions,
                     uint64_t seed) {
        uint32_t n_chosen = 0;
        std::vector<kernels_chosen> chosen = ask(rows, questions);
        for (size_t i = 0; i < rows.size(); i++) {
            const question &q = questions[i];
            perch_sampling sampling = sampling_of(q);
            sampler_input in = {rows[i].data(),      &sampling,           tokens_of_slots.data() + q.slot * SESSION_LEN,
                                q.n_tokens,          q.n_prompt,          q.completion,
                                q.suppressed.data(), q.suppressed.size(), q.want_logprob};
            sampler_output expected = {}, found = {};
            perch_error err = {}, device_err = {};
            perch_status status = sampler_sample(host, &in, &expected, &err);
            perch_status device_status = sampler_report(&chosen[i], q.n_tokens, &found, &device_err);
            kernels_chosen told;
            sampler_choose(host, &in, &told);
            bool same = same_numbers(told, chosen[i], q.want_logprob || sampling.n_logprobs > 0) &&
                        status == device_status && (status || memcmp(&expected, &found, sizeof found) == 0) &&
                        (!status || strcmp(err.message, device_err.message) == 0);
            CHECK_MSG(same,
                      "seed %llu, row %zu of %zu, %u tokens: %d (%d), should be %d (%d): %.9g and %u of the best, not "
                      "%.9g and %u"
                      " (T %g k %d p %g min %g repetition %g frequency %g presence %g, %zu banned)",
                      static_cast<unsigned long long>(seed), i, rows.size(), vocab_size, found.token, device_status,
                      expected.token, status, static_cast<double>(found.logprob), found.n_top,
                      static_cast<double>(expected.logprob), expected.n_top, sampling.temperature, sampling.top_k,
                      sampling.top_p, sampling.min_p, sampling.repetition_penalty, sampling.frequency_penalty,
                      sampling.presence_penalty, q.banned.size() + q.suppressed.size());
            n_chosen += status == PERCH_OK;
        }
        return n_chosen;
    }

    const uint32_t vocab_size, max_rows;

  private:
    static perch_sampling sampling_of(const question &q) {
        perch_sampling sampling = q.sampling;
        sampling.banned_tokens = q.banned.data();
        sampling.n_banned_tokens = q.banned.size();
        return sampling;
    }

    sampler *host = nullptr;
    device_array<uint8_t> scratch;
    device_array<int32_t> history;
    std::vector<int32_t> tokens_of_slots = std::vector<int32_t>(SLOTS * SESSION_LEN);
};

/* ------------------------------------------------------------- random rows and questions */

int32_t random_token(test_rng *rng, uint32_t vocab_size) {
    return static_cast<int32_t>(test_rng_below(rng, vocab_size));
}

std::vector<float> random_row(test_rng *rng, uint32_t vocab_size) {
    static const float odd[] = {NAN, -INFINITY, INFINITY, -NAN, 3.4e38f, -3.4e38f, FLT_MAX, 1e-45f};
    std::vector<float> row(vocab_size);
    reference_row(rng, row.data(), vocab_size);
    switch (test_rng_below(rng, 12)) {
    case 0: /* all equal: every order is by id */
        std::fill(row.begin(), row.end(), row[0]);
        break;
    case 1: /* a few values */
        for (float &logit : row) {
            logit = std::round(logit);
        }
        break;
    case 2: /* nothing at all, or nearly */
        std::fill(row.begin(), row.end(), test_rng_below(rng, 2) ? NAN : -INFINITY);
        if (test_rng_below(rng, 2)) {
            row[test_rng_below(rng, vocab_size)] = 3;
        }
        break;
    case 3: /* one far above a narrow crowd: that lies within one step of the histogram */
        for (float &logit : row) {
            logit = 1 + logit * 1e-5f;
        }
        row[test_rng_below(rng, vocab_size)] = 15;
        break;
    default:
        break;
    }
    if (test_rng_below(rng, 3) == 0) {
        for (uint64_t i = 1 + test_rng_below(rng, 5); i > 0; i--) {
            row[test_rng_below(rng, vocab_size)] = odd[test_rng_below(rng, sizeof odd / sizeof *odd)];
        }
    }
    return row;
}

question random_question(test_rng *rng, uint32_t vocab_size) {
    static const double temperatures[] = {5e-324, 1e-300, 1e-5, 1e3, 1e300, 1.7e308},
                        shares[] = {5e-324, 1e-9, 0.5, 1 - 0x1p-53};
    question q = plain_question(reference_sampling(rng, vocab_size));
    perch_sampling &p = q.sampling;
    p.typical_p = 1;
    if (test_rng_below(rng, 8) == 0) {
        p.temperature = temperatures[test_rng_below(rng, 6)];
    }
    if (test_rng_below(rng, 8) == 0) {
        p.top_p = shares[test_rng_below(rng, 4)];
    }
    if (test_rng_below(rng, 3) == 0) { /* else reference_sampling has nearly all on */
        p.repetition_penalty = 1;
        p.frequency_penalty = p.presence_penalty = 0;
    }
    if (test_rng_below(rng, 20) == 0) {
        p.repetition_penalty = test_rng_below(rng, 2) ? 1e308 : 5e-324;
    }
    p.n_logprobs = test_rng_below(rng, 2) ? static_cast<uint32_t>(test_rng_below(rng, SAMPLER_MAX_LOGPROBS + 1)) : 0;
    q.want_logprob = test_rng_below(rng, 2);
    q.slot = static_cast<uint32_t>(test_rng_below(rng, SLOTS));
    q.n_tokens = static_cast<uint32_t>(test_rng_below(rng, SESSION_LEN + 1));
    q.n_prompt = static_cast<uint32_t>(test_rng_below(rng, q.n_tokens + 1));
    q.completion = static_cast<uint32_t>(test_rng_below(rng, 3));
    for (uint64_t i = test_rng_below(rng, 4) ? 0 : test_rng_below(rng, 100); i > 0; i--) {
        q.banned.push_back(random_token(rng, vocab_size));
    }
    for (uint64_t i = test_rng_below(rng, 4) ? 0 : test_rng_below(rng, 4); i > 0; i--) {
        q.suppressed.push_back(random_token(rng, vocab_size));
    }
    return q;
}

std::vector<int32_t> random_history(test_rng *rng, uint32_t vocab_size) {
    std::vector<int32_t> tokens(SLOTS * SESSION_LEN);
    for (int32_t &token : tokens) {
        token =
            random_token(rng, test_rng_below(rng, 2) && vocab_size > 10 ? 10 : vocab_size); /* some again and again */
        if (test_rng_below(rng, 30) == 0) { /* of another vocabulary: ignored */
            token += test_rng_below(rng, 2) ? static_cast<int32_t>(vocab_size) : -static_cast<int32_t>(vocab_size);
        }
    }
    return tokens;
}

/* `rows` random choices in launches of 1 to max_rows. Returns how many of a hundred had a token left. */
uint64_t random_rounds(bench *b, uint64_t rows, uint64_t seed) {
    uint64_t n_chosen = 0, n_asked = 0;
    for (uint64_t round = 0; n_asked < rows; round++) {
        test_rng rng = {seed + round};
        const uint64_t n = 1 + test_rng_below(&rng, b->max_rows);
        b->set_history(random_history(&rng, b->vocab_size));
        std::vector<std::vector<float>> logits;
        std::vector<question> questions;
        for (uint64_t i = 0; i < n; i++) {
            logits.push_back(random_row(&rng, b->vocab_size));
            questions.push_back(random_question(&rng, b->vocab_size));
        }
        n_chosen += b->compare(logits, questions, seed + round);
        n_asked += n;
    }
    return n_chosen * 100 / n_asked;
}

void test_small_vocabularies() {
    static const uint32_t sizes[] = {1, 2, 3, 17, 31, 32, 33, 255, 256, 257, 500, 777};
    for (uint32_t size : sizes) {
        bench b(size, 12);
        uint64_t chosen = random_rounds(&b, test_scaled(120), test_seed(100) + size * 1000);
        CHECK_MSG(size < 100 || chosen > 20, "only %u %% had a token left", static_cast<unsigned>(chosen));
    }
}

void test_several_blocks_a_row() {
    static const uint32_t sizes[] = {2000, 2049, 2561, 4999};
    for (uint32_t size : sizes) {
        bench b(size, 8);
        random_rounds(&b, test_scaled(100), test_seed(200) + size * 1000);
    }
}

void test_large_vocabulary() {
    bench b(32003, 4);
    random_rounds(&b, test_scaled(12), test_seed(300));
}

/* Rows that no list of 2048 ranks holds. */
void test_more_ties_than_are_listed() {
    constexpr uint32_t VOCAB = 6001;
    bench b(VOCAB, 4);
    std::vector<std::vector<float>> rows(4, std::vector<float>(VOCAB, 1.5f));
    for (uint32_t i = 0; i < VOCAB; i++) {
        rows[1][i] = i % 7 ? 2.0f : i % 2 ? 2.5f : -1.0f;
        rows[2][i] = i % 3 ? -INFINITY : 0.0f;
        rows[3][i] = i % 2 ? 0.0f : -0.0f;
    }
    std::vector<question> questions;
    for (uint32_t i = 0; i < 4; i++) {
        perch_sampling p = plain_sampling(0.8);
        p.n_logprobs = 5 * (i + 1);
        questions.push_back(plain_question(p));
    }
    for (uint64_t seed = 0; seed < 4; seed++) {
        for (int way = 0; way < 4; way++) {
            for (question &q : questions) {
                q.sampling.seed = seed;
                q.sampling.top_k = way % 2 ? 1300 : 0;
                q.sampling.top_p = way / 2 ? 0.77 : 1;
                q.banned = seed == 3 ? std::vector<int32_t>{0, 6000, 77, 77} : std::vector<int32_t>{};
            }
            CU_ASSERT_EQUAL(b.compare(rows, questions, seed), 4);
        }
    }
}

void test_ties_go_to_the_lowest_id() {
    constexpr uint32_t VOCAB = 3000;
    bench b(VOCAB, 1);
    for (uint32_t at : {0u, 1u, 31u, 32u, 255u, 256u, 2047u, 2048u, 2999u}) {
        std::vector<float> row(VOCAB, -3.0f);
        for (uint32_t i = at; i < VOCAB; i += 3) {
            row[i] = 7;
        }
        std::vector<kernels_chosen> chosen = b.ask({row}, {plain_question(plain_sampling(0))});
        CU_ASSERT_EQUAL(chosen[0].token, static_cast<int32_t>(at));
        CU_ASSERT_EQUAL(chosen[0].logit, 7);
        CU_ASSERT_EQUAL(chosen[0].total, 0);
        CU_ASSERT_EQUAL(chosen[0].n_top, 0);
    }
}

void test_all_banned_is_no_token() {
    constexpr uint32_t VOCAB = 200;
    bench b(VOCAB, 3);
    std::vector<int32_t> all(VOCAB);
    for (uint32_t i = 0; i < VOCAB; i++) {
        all[i] = static_cast<int32_t>(VOCAB - 1 - i);
    }
    perch_sampling hot = plain_sampling(2), front = plain_sampling(1);
    hot.n_logprobs = 20;
    front.top_k = 10;
    front.top_p = 0.5;
    for (int round = 0; round < 3; round++) {
        std::vector<question> questions = {plain_question(plain_sampling(0)), plain_question(hot),
                                           plain_question(front)};
        for (question &q : questions) {
            q.banned = all;
            q.want_logprob = true;
        }
        if (round == 1) { /* all but one */
            questions[0].banned.pop_back();
            questions[1].banned.erase(questions[1].banned.begin());
            questions[2].banned.erase(questions[2].banned.begin() + 100);
        }
        std::vector<std::vector<float>> rows(3, std::vector<float>(VOCAB, 1.0f));
        std::vector<kernels_chosen> chosen = b.ask(rows, questions);
        CU_ASSERT_EQUAL(chosen[0].token, round == 1 ? 0 : -1);
        CU_ASSERT_EQUAL(chosen[1].token, round == 1 ? 199 : -1);
        CU_ASSERT_EQUAL(chosen[2].token, round == 1 ? 99 : -1);
        CU_ASSERT_EQUAL(b.compare(rows, questions, 0), round == 1 ? 3 : 0);
    }
}

void test_a_choice_is_its_own() {
    /* whoever else is in the launch, in whatever place, and whatever is launched for the others' sake */
    constexpr uint32_t VOCAB = 1500, ROWS = 10;
    test_rng rng = {test_seed(400)};
    bench together(VOCAB, ROWS), alone(VOCAB, 1);
    std::vector<int32_t> tokens = random_history(&rng, VOCAB);
    together.set_history(tokens);
    alone.set_history(tokens);
    std::vector<std::vector<float>> rows;
    std::vector<question> questions;
    for (uint32_t i = 0; i < ROWS; i++) {
        rows.push_back(random_row(&rng, VOCAB));
        questions.push_back(i < 3 ? plain_question(plain_sampling(i / 2.0)) : random_question(&rng, VOCAB));
    }
    std::vector<kernels_chosen> all = together.ask(rows, questions);
    for (uint32_t i = 0; i < ROWS; i++) {
        std::vector<kernels_chosen> one = alone.ask({rows[i]}, {questions[i]});
        CHECK_MSG(memcmp(&one[0], &all[i], sizeof one[0]) == 0, "row %u: %d alone, %d together", i, one[0].token,
                  all[i].token);
    }
}

/* ------------------------------------------------------------------ what the device is told */

kernels_choice choice_of(const perch_sampling *sampling) { return {3, 2, 1, 10, 20, sampling, nullptr, 0, false}; }

void test_what_the_device_can_choose() {
    const perch_logit_bias bias = {1, 2};
    std::vector<int32_t> tokens(CUDA_MAX_BANS + 1);
    perch_sampling p = plain_sampling(1);
    kernels_choice choice = choice_of(&p);
    CU_ASSERT_TRUE(cuda_can_choose(&choice));
    p.typical_p = 0.999;
    CU_ASSERT_FALSE(cuda_can_choose(&choice));
    p.typical_p = 1;
    p.logit_bias = &bias;
    p.n_logit_bias = 1;
    CU_ASSERT_FALSE(cuda_can_choose(&choice));
    p.n_logit_bias = 0;
    p.banned_tokens = choice.suppressed = tokens.data();
    for (size_t n_banned : {size_t{0}, size_t{100}, size_t{CUDA_MAX_BANS}, size_t{CUDA_MAX_BANS + 1}, SIZE_MAX}) {
        p.n_banned_tokens = n_banned;
        for (uint32_t n : {0u, 100u, CUDA_MAX_BANS, CUDA_MAX_BANS + 1, UINT32_MAX}) {
            choice.n_suppressed = n;
            bool fits = n_banned <= CUDA_MAX_BANS && n <= CUDA_MAX_BANS && n_banned + n <= CUDA_MAX_BANS;
            CU_ASSERT_EQUAL(cuda_can_choose(&choice), fits);
        }
    }
}

uint32_t needs_of(const perch_sampling &p, bool want_logprob) {
    kernels_choice choice = choice_of(&p);
    cuda_choice out;
    choice.want_logprob = want_logprob;
    CU_ASSERT_EQUAL(cuda_choice_fill(&choice, 50, 7, &out, nullptr), 7); /* no bans: nothing is written */
    return out.needs;
}

void test_what_a_choice_needs() {
    perch_sampling p = plain_sampling(0);
    CU_ASSERT_EQUAL(needs_of(p, false), 0);
    CU_ASSERT_EQUAL(needs_of(p, true), CUDA_CHOICE_LOGPROBS);
    p.n_logprobs = 1;
    CU_ASSERT_EQUAL(needs_of(p, false), CUDA_CHOICE_LOGPROBS);
    p = plain_sampling(0);
    p.top_p = 0.5;
    p.top_k = 5;
    CU_ASSERT_EQUAL(needs_of(p, false), 0);
    p.temperature = 1;
    CU_ASSERT_EQUAL(needs_of(p, false), CUDA_CHOICE_DRAW | CUDA_CHOICE_FRONT);
    p.top_p = 1;
    CU_ASSERT_EQUAL(needs_of(p, false), CUDA_CHOICE_DRAW | CUDA_CHOICE_FRONT);
    p.top_k = 50; /* all there are */
    CU_ASSERT_EQUAL(needs_of(p, false), CUDA_CHOICE_DRAW);
    for (int way = 0; way < 3; way++) {
        p = plain_sampling(0);
        (way == 0 ? p.repetition_penalty : way == 1 ? p.frequency_penalty : p.presence_penalty) = 0.5;
        CU_ASSERT_EQUAL(needs_of(p, false), CUDA_CHOICE_MARKS);
    }
}

void test_what_a_choice_is_filled_with() {
    const int32_t banned[] = {5, 9}, suppressed[] = {2, 2, 7};
    perch_sampling p = plain_sampling(0.5);
    p.top_p = 0.25;
    p.min_p = 0.125;
    p.top_k = 49;
    p.n_logprobs = 20;
    p.seed = 99;
    p.repetition_penalty = 1.25;
    p.frequency_penalty = 0.75;
    p.presence_penalty = -0.5;
    p.banned_tokens = banned;
    p.n_banned_tokens = 2;
    kernels_choice choice = choice_of(&p);
    choice.suppressed = suppressed;
    choice.n_suppressed = 3;
    cuda_choice out;
    int32_t bans[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
    const int32_t expected[8] = {-1, 5, 9, 2, 2, 7, -1, -1};
    CU_ASSERT_EQUAL(cuda_choice_fill(&choice, 18, 1, &out, bans), 6);
    CU_ASSERT_EQUAL(memcmp(bans, expected, sizeof bans), 0);
    CU_ASSERT_TRUE(out.logit_row == 3 && out.slot == 2 && out.completion == 1 && out.n_prompt == 10 &&
                   out.n_tokens == 20);
    CU_ASSERT_TRUE(out.n_top == 18 && out.top_k == 0 && out.first_ban == 1 && out.n_bans == 5 && out.seed == 99);
    CU_ASSERT_TRUE(out.top_p == UINT64_C(1) << 62 && out.min_p == UINT64_C(1) << 61 && out.inverse_temperature == 2);
    CU_ASSERT_TRUE(out.repetition_penalty == 1.25 && out.frequency_penalty == 0.75 && out.presence_penalty == -0.5);
}

void test_sizes_that_are_refused() {
    CU_ASSERT_EQUAL(cuda_choose(nullptr, nullptr, 0, nullptr, nullptr, 1, 0, nullptr, 0, nullptr, nullptr),
                    cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(
        cuda_choose(nullptr, nullptr, SAMPLING_MAX_VOCAB + 1, nullptr, nullptr, 1, 0, nullptr, 0, nullptr, nullptr),
        cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(cuda_choose(nullptr, nullptr, 100, nullptr, nullptr, 0, 0, nullptr, 0, nullptr, nullptr),
                    cudaSuccess);
    CU_ASSERT_TRUE(cuda_choose_scratch_bytes(256, 128256) < 200u << 20);
    CU_ASSERT_EQUAL(cuda_choose_scratch_bytes(6, 1000), 6 * cuda_choose_scratch_bytes(1, 1000));
}

#ifndef SIMT_EMULATE
/* Microseconds of one launch of n choices on a vocabulary as large models have it; the parameters are the caller's. */
double launch_us(uint32_t n, const perch_sampling &sampling, bool flat) {
    constexpr uint32_t VOCAB = 128256, ROUNDS = 50;
    test_rng rng = {1};
    std::vector<float> row(VOCAB), logits;
    for (float &logit : row) {
        logit = static_cast<float>((test_rng_unit(&rng) + test_rng_unit(&rng) + test_rng_unit(&rng) - 1.5) *
                                   (flat ? 0.5 : 5));
    }
    row[777] += flat ? 0 : 10;
    std::vector<cuda_choice> choices(n);
    for (uint32_t i = 0; i < n; i++) {
        kernels_choice choice = {i, i % SLOTS, 0, 10, SESSION_LEN, &sampling, nullptr, 0, false};
        cuda_choice_fill(&choice, VOCAB, 0, &choices[i], nullptr);
        logits.insert(logits.end(), row.begin(), row.end());
    }
    device_array<float> device_logits(logits);
    device_array<cuda_choice> device_choices(choices);
    device_array<int32_t> history(std::vector<int32_t>(SLOTS * SESSION_LEN, 5)), bans(1);
    device_array<uint8_t> scratch(cuda_choose_scratch_bytes(n, VOCAB));
    device_array<kernels_chosen> chosen(n);
    cudaEvent_t begin, end;
    float ms = 0;
    CHECK_CUDA(cudaMemset(scratch.p, 0, scratch.n));
    CHECK_CUDA(cudaEventCreate(&begin));
    CHECK_CUDA(cudaEventCreate(&end));
    for (uint32_t round = 0; round < 2 * ROUNDS; round++) { /* the first half warms up */
        if (round == ROUNDS) {
            CHECK_CUDA(cudaEventRecord(begin, nullptr));
        }
        CHECK_CUDA(cuda_choose(nullptr, device_logits.p, VOCAB, device_choices.p, bans.p, n, choices[0].needs,
                               history.p, SESSION_LEN, scratch.p, chosen.p));
    }
    CHECK_CUDA(cudaEventRecord(end, nullptr));
    CHECK_CUDA(cudaEventSynchronize(end));
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    CHECK_CUDA(cudaEventDestroy(begin));
    CHECK_CUDA(cudaEventDestroy(end));
    return static_cast<double>(ms) * 1000 / ROUNDS;
}

/* Prints what tells whether a step waits for its choices; fails where that is far from what one reading of the logits takes. */
void test_how_long_a_launch_takes() {
    struct {
        const char *name;
        double temperature, top_p, repetition;
        int32_t top_k;
        uint32_t n_top;
    } ways[] = {{"greedy", 0, 1, 1, 0, 0},        {"temperature", 0.8, 1, 1, 0, 0}, {"top-k 40", 0.8, 1, 1, 40, 0},
                {"top-p 0.9", 0.8, 0.9, 1, 0, 0}, {"both", 0.8, 0.9, 1, 40, 0},     {"repetition", 0.8, 0.9, 1.1, 0, 0},
                {"5 of the best", 0, 1, 1, 0, 5}};
    for (bool flat : {false, true}) {
        for (auto way : ways) {
            perch_sampling p = plain_sampling(way.temperature);
            p.top_p = way.top_p;
            p.repetition_penalty = way.repetition;
            p.top_k = way.top_k;
            p.n_logprobs = way.n_top;
            double one = launch_us(1, p, flat), many = launch_us(256, p, flat);
            printf("     %-6s %-14s 1 row %7.1f us, 256 rows %8.1f us\n", flat ? "flat" : "peaked", way.name, one,
                   many);
            CHECK_MSG(one < 500 && many < 5000, "%s: %g us, 256 rows %g us", way.name, one, many);
        }
    }
}
#endif

} // namespace

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"small_vocabularies_as_the_host", test_small_vocabularies},
        {"several_blocks_a_row_as_the_host", test_several_blocks_a_row},
        {"large_vocabulary_as_the_host", test_large_vocabulary},
        {"more_ties_than_are_listed", test_more_ties_than_are_listed},
        {"ties_go_to_the_lowest_id", test_ties_go_to_the_lowest_id},
        {"all_banned_is_no_token", test_all_banned_is_no_token},
        {"a_choice_is_its_own", test_a_choice_is_its_own},
        {"what_the_device_can_choose", test_what_the_device_can_choose},
        {"what_a_choice_needs", test_what_a_choice_needs},
        {"what_a_choice_is_filled_with", test_what_a_choice_is_filled_with},
        {"sizes_that_are_refused", test_sizes_that_are_refused},
#ifndef SIMT_EMULATE
        {"how_long_a_launch_takes", test_how_long_a_launch_takes},
#endif
    };
    return test_main("sampling", tests, sizeof tests / sizeof tests[0], argc, argv);
}
