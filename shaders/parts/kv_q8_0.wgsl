// Cached keys and values in Q8_0: 32 values of a head are bytes q and an f16 scale d. Bytes have
// 128 added, so that they unpack as unsigned: value = d (q - 128). A head's share of a page is its
// bytes of all positions, then for each position a word for every two scales.
alias KvStored = u32;
alias KvOct = vec2<u32>;              // eight neighbouring values
const KV_PAIRS = 32u;                 // two blocks of 32 values
const KV_WORDS = 17u;                 // their scales, and four values each
const KV_BLOCK = 4u;

const SCALE_WORDS = (OCTS + 7u) / 8u; // of a position
const HEAD_WORDS = PAGE * (OCTS * 2u + SCALE_WORDS);

fn kv_pack(pairs: array<vec2<f32>, KV_PAIRS>) -> array<KvStored, KV_WORDS> {
    var values = pairs;
    var words: array<KvStored, KV_WORDS>;
    var scales: vec2<f32>;
    var none = 0u;  // bits that make a scale no number, where a value is none
    for (var b = 0u; b < 2u; b++) {
        // Bits of magnitudes are in their order, with what is no number at the end.
        var most = vec2<u32>(0u);
        for (var i = 0u; i < 16u; i++) {
            most = max(most, bitcast<vec2<u32>>(abs(values[b * 16u + i])));
        }
        let bits = max(most.x, most.y);
        none |= select(0u, 0x7e00u << (16u * b), bits >= 0x7f800000u);
        // Beyond the range of f16 values are cut, never infinite.
        let d = min(bitcast<f32>(bits) / 127.0, 65504.0);
        let inverse = select(0.0, 1.0 / d, d > 0.0);
        scales[b] = d;
        for (var i = 0u; i < 8u; i++) {
            let four = vec4<f32>(values[b * 16u + i * 2u], values[b * 16u + i * 2u + 1u]);
            let q = clamp(round(four * inverse), vec4<f32>(-127.0), vec4<f32>(127.0)) + 128.0;
            words[1u + b * 8u + i] = pack4xU8(vec4<u32>(q));
        }
    }
    words[0] = pack2x16float(scales) | none;
    return words;
}

fn kv_words(unit: u32) -> u32 { return 1u + min(16u, OCTS * 2u - unit * 16u); }

fn kv_place(head: u32, j: u32, unit: u32, i: u32) -> u32 {
    let scale = PAGE * OCTS * 2u + j * SCALE_WORDS + unit;
    return head * HEAD_WORDS + select(j * OCTS * 2u + unit * 16u + i - 1u, scale, i == 0u);
}

fn kv_oct(head: u32, j: u32, o: u32) -> u32 { return head * (HEAD_WORDS / 2u) + j * OCTS + o; }

fn kv_factor(head: u32, j: u32, b: u32) -> u32 {
    return head * (HEAD_WORDS / 2u) + PAGE * OCTS + (j * SCALE_WORDS + b / 2u) / 2u;
}

fn kv_scale(factor: KvOct, j: u32, b: u32) -> f32 {
    let scales = unpack2x16float(select(factor.x, factor.y, (j * SCALE_WORDS + b / 2u) % 2u == 1u));
    return select(scales.x, scales.y, b % 2u == 1u);
}

fn kv_low(q: KvOct, scale: f32) -> vec4<f32> { return vec4<f32>(unpack4xU8(q.x)) * scale - 128.0 * scale; }

fn kv_high(q: KvOct, scale: f32) -> vec4<f32> { return vec4<f32>(unpack4xU8(q.y)) * scale - 128.0 * scale; }
