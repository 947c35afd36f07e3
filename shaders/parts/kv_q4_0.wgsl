// Cached keys and values in Q4_0: 32 values of a head are nibbles q and an f16 scale d,
// value = d (q - 8). A head's share of a page is its nibbles of all positions, eight values to a
// word with the first four in the low nibbles, then for each position a word for every two scales.
alias KvStored = u32;
alias KvOct = u32;                    // eight neighbouring values
const KV_PAIRS = 32u;                 // two blocks of 32 values
const KV_WORDS = 9u;                  // their scales, and eight values each
const KV_BLOCK = 4u;

const SCALE_WORDS = (OCTS + 7u) / 8u; // of a position
const HEAD_WORDS = PAGE * (OCTS + SCALE_WORDS);

fn kv_pack(pairs: array<vec2<f32>, KV_PAIRS>) -> array<KvStored, KV_WORDS> {
    var values = pairs;
    var words: array<KvStored, KV_WORDS>;
    var scales: vec2<f32>;
    var none = 0u;  // bits that make a scale no number, where a value is none
    for (var b = 0u; b < 2u; b++) {
        // The value of largest magnitude becomes -8, the end of the range that has one step more.
        var most = 0.0;
        for (var i = 0u; i < 16u; i++) {
            let pair = values[b * 16u + i];
            let exponents = bitcast<vec2<u32>>(pair) & vec2<u32>(0x7f800000u);
            none |= select(0u, 0x7e00u << (16u * b), max(exponents.x, exponents.y) == 0x7f800000u);
            most = select(most, pair.x, abs(pair.x) > abs(most));
            most = select(most, pair.y, abs(pair.y) > abs(most));
        }
        // Beyond the range of f16 values are cut, never infinite.
        let d = clamp(most / -8.0, -65504.0, 65504.0);
        let inverse = select(0.0, 1.0 / d, d != 0.0);
        scales[b] = d;
        for (var i = 0u; i < 4u; i++) {
            let at = b * 16u + i * 4u;
            let low = nibbles(vec4<f32>(values[at], values[at + 1u]) * inverse);
            let high = nibbles(vec4<f32>(values[at + 2u], values[at + 3u]) * inverse);
            words[1u + b * 4u + i] = low | (high << 4u);
        }
    }
    words[0] = pack2x16float(scales) | none;
    return words;
}

fn nibbles(steps: vec4<f32>) -> u32 {
    return pack4xU8(vec4<u32>(clamp(round(steps + 8.0), vec4<f32>(0.0), vec4<f32>(15.0))));
}

fn kv_words(unit: u32) -> u32 { return 1u + min(8u, OCTS - unit * 8u); }

fn kv_place(head: u32, j: u32, unit: u32, i: u32) -> u32 {
    let scale = PAGE * OCTS + j * SCALE_WORDS + unit;
    return head * HEAD_WORDS + select(j * OCTS + unit * 8u + i - 1u, scale, i == 0u);
}

fn kv_oct(head: u32, j: u32, o: u32) -> u32 { return head * HEAD_WORDS + j * OCTS + o; }

fn kv_factor(head: u32, j: u32, b: u32) -> u32 {
    return head * HEAD_WORDS + PAGE * OCTS + j * SCALE_WORDS + b / 2u;
}

fn kv_scale(factor: KvOct, j: u32, b: u32) -> f32 {
    let scales = unpack2x16float(factor);
    return select(scales.x, scales.y, b % 2u == 1u);
}

fn kv_low(q: KvOct, scale: f32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(q & 0x0f0f0f0fu)) * scale - 8.0 * scale;
}

fn kv_high(q: KvOct, scale: f32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((q >> 4u) & 0x0f0f0f0fu)) * scale - 8.0 * scale;
}
