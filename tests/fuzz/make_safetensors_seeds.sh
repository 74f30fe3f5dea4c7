#!/usr/bin/env bash
# Writes corpus/safetensors: an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes.
# usage: make_safetensors_seeds.sh   from anywhere
set -euo pipefail
cd "$(dirname "$0")/corpus/safetensors"

# seed NAME HEADER N_DATA_BYTES [LENGTH]: LENGTH is what the file says the header's length is, where that is a lie.
seed() {
    local length=${4:-${#2}} i
    {
        for i in 0 8 16 24 32 40 48 56; do
            # shellcheck disable=SC2059 # the format is the byte
            printf "\\x$(printf %02x $(((length >> i) & 255)))"
        done
        printf '%s' "$2"
        head -c "$3" /dev/zero | tr '\0' '\77'
    } >"$1"
}

seed empty '{}' 0
seed one_f32 '{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}' 16
seed dtypes '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"c":{"dtype":"BF16","shape":[1,2],"data_offsets":[12,16]}}' 16
seed metadata '{"__metadata__":{"format":"pt"},"model.norm.weight":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}   ' 8
seed scalar '{"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}' 4
seed no_elements '{"z":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}}' 0
seed model '{"model.embed_tokens.weight":{"dtype":"F32","shape":[4,2],"data_offsets":[0,32]},"model.layers.0.self_attn.q_proj.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[32,48]},"model.norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[48,56]}}' 56
seed near_overlap '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}' 12
seed near_hole '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}' 12
seed near_beyond_end '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}' 8
seed near_backwards '{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}' 4
seed near_size_differs '{"w":{"dtype":"F16","shape":[2,2],"data_offsets":[0,16]}}' 16
seed near_shape_overflows '{"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}' 0
seed near_negative '{"w":{"dtype":"F32","shape":[-1],"data_offsets":[-4,0]}}' 4
seed near_dtype '{"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}' 4
seed near_types '{"w":{"dtype":3,"shape":"2","data_offsets":[0.5,null]},"v":[]}' 4
seed near_twice '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' 4
seed near_length_too_long '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' 4 4096
seed near_length_huge '{}' 0 -1
seed near_length_too_short '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' 4 20
seed near_not_json 'not json' 4
printf '\x02\x00\x00' >near_cut_length
