// Weights in Q5_0: per group of 32 one vector of nibbles, as in Q4_0, and a word with the fifth bits,
// that of weight 4 i + c in bit 8 c + i; for each two groups two such words and two f16 scales.
// w = d q - 16 d.
const HAS_SCALE = true;
const HAS_MIN = !TAKES_OFF;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    high: u32,
    d: f32,
}

// Group `g` (counted over all rows) of 32 weights, the one at `k` of its row.
fn block(g: u32, k: u32) -> Block {
    let at = g / 2u * 3u;
    return Block(w[g], scales[at + g % 2u], unpack2x16float(scales[at + 2u] >> (16u * g)).x);
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let low = (b.q[i % 4u] >> (i / 4u * 4u)) & 0x0f0f0f0fu;
    return bytes(low | (((b.high >> i) & 0x01010101u) << 4u), 31u, 16.0);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, -left(16.0, b.d)); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * (qx.x - left(16.0, x.x)); }
