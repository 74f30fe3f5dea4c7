#!/usr/bin/env bash
# The demo's model and conversations through the command: chats from a pipe, and all of them at once over three slots.
. "$(dirname "$0")/lib.sh"
model=(--config configs/demo.ini)
talks=tools/demo-data/conversations.jsonl
most=64 # turns in a conversation, at most

# PERCH_TEST_SCALE below 1: fewer conversations, of fewer turns each.
read -r n_talks n_turns <<<"$(awk -v scale="${PERCH_TEST_SCALE:-1}" -v all="$(wc -l <"$talks")" \
    'BEGIN { if (scale >= 1) { print all, 1000 } else { n = int(all * scale); print (n < 4 ? 4 : n), 14 } }')"

# Short conversations fit three slots unless these are short as well.
if [ "$n_turns" -lt 20 ]; then
    model+=(engine.session_len=448)
fi

# One line for each turn: conversation, turn, user, assistant; separated by tabs.
paths=(name)
for i in $(seq 0 $((most - 1))); do
    paths+=("turns.$i.user" "turns.$i.assistant")
done
json "${paths[@]}" <"$talks" | awk -F '\t' -v OFS='\t' '{ for (i = 2; i < NF && $i != "-"; i += 2) print NR, i / 2, $i, $(i + 1) }' \
    >"$tmp/whole"
awk -F '\t' -v talks="$n_talks" -v turns="$n_turns" '$1 <= talks && $2 <= turns' "$tmp/whole" >"$tmp/all"

t "the conversations are read whole"
same "their turns" "$(json turns.# <"$talks" | awk '{ n += $1 } END { print n }')" "$(wc -l <"$tmp/whole")"
[ "$(wc -l <"$talks")" -ge 8 ] || bad "there are fewer than 8"

t "chat answers a conversation from a pipe as it should, turn by turn"
awk -F '\t' '$1 == 1 { print $3 }' "$tmp/all" >"$tmp/in"
run "$perch" chat "${model[@]}" <"$tmp/in"
same "the exit code" 0 "$code"
same "stderr" "" "$err"
same "the answers" "$(awk -F '\t' '$1 == 1 { print $4 }' "$tmp/all")" "$out"

t "batch answers all conversations at once over three slots, each turn behind the others' turns"
sort -t "$(printf '\t')" -k 2,2n -k 1,1n "$tmp/all" |
    awk -F '\t' '{ printf "{\"id\": \"%d.%d\", \"session\": %d, \"messages\": [{\"role\": \"user\", \"content\": \"%s\"}], \"max_tokens\": 64}\n", $1, $2, $1, $3 }' \
        >"$tmp/in"
run "$perch" batch "${model[@]}" --stats --json <"$tmp/in"
same "the exit code" 0 "$code"
same "the answers" "$(sort -t "$(printf '\t')" -k 2,2n -k 1,1n "$tmp/all" | cut -f 4)" "$(json text <<<"$out")"
same "the reasons" eos "$(json finish_reason <<<"$out" | sort -u)"
same "slots" 3 "$(json slots_total <<<"$err")"
[ "$(json evictions <<<"$err")" -gt 0 ] || bad "nothing was evicted: $err"
answers=$(json tokens <<<"$out")

t "what docs/cli.md shows of the model is what it answers"
shown=$(sed -n 's/^> \(.*[.?]\)   *\([A-Z].*\)$/\1\t\2/p' docs/cli.md)
[ "$(wc -l <<<"$shown")" -ge 6 ] || bad "docs/cli.md shows only '$shown'"
run "$perch" chat --config configs/demo.ini < <(cut -f 1 <<<"$shown")
same "the answers" "$(cut -f 2 <<<"$shown")" "$out"

t "batch renders messages in the format that a line or --format names"
line() { printf '{"messages": [{"role": "user", "content": "My cat is called Milo."}]%s}\n' "$1"; }
run "$perch" batch "${model[@]}" --format plain < <(line ', "format": "chatml"' && line "")
same "the exit code" 0 "$code"
same "chatml's answer" "A cat called Milo, how charming." "$(json text <<<"$out" | sed -n 1p)"
[ "$(json usage.prompt_tokens <<<"$out" | sort -u | wc -l)" = 2 ] || bad "plain is as long as chatml"
run "$perch" batch "${model[@]}" --format klingon </dev/null
same "the exit code of a format that is none" 2 "$code"

t "with room for all, and in steps of any size, the tokens are the same"
run "$perch" batch "${model[@]}" --stats --json cache.cache_max_entry_count="$n_talks" <"$tmp/in"
same "the tokens" "$answers" "$(json tokens <<<"$out")"
same "evictions" 0 "$(json evictions <<<"$err")"
run "$perch" batch "${model[@]}" engine.max_step_tokens=40 parallel.threads=1 cache.cache_max_entry_count=1 <"$tmp/in"
same "the tokens in the memory of one" "$answers" "$(json tokens <<<"$out")"

t "bf16 answers as f32 does"
run "$perch" batch "${model[@]}" model.dtype=bf16 <"$tmp/in"
same "the answers" "$(sort -t "$(printf '\t')" -k 2,2n -k 1,1n "$tmp/all" | cut -f 4)" "$(json text <<<"$out")"

t "the example that remembers: each run is a turn of a stored conversation"
remember=$(dirname "$minimal")/remember
for turn in "My cat is called Milo.|A cat called Milo, how charming." "What is my cat called?|Your cat is called Milo."; do
    run "$remember" tools/train/model "$tmp/store" alice "${turn%|*}"
    same "the exit code" 0 "$code"
    same "the answer" "${turn#*|}" "$out"
done
run "$remember" tools/train/model "$tmp/store" bob "What is my cat called?"
same "another one's answer" "You have not told me about your cat." "$out"
run "$remember" tools/train/model /dev/null/store alice "Hello."
same "the exit code without a store" 1 "$code"

finish
