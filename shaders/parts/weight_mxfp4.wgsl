// Weights in MXFP4: per group of 32 one vector of nibbles, as in Q4_0, and a byte e; a nibble is a
// float of four bits (E2M1): sign, two bits of exponent, one of mantissa, here a doubled value v with
// 12 added, so that it is a byte. w = 2^(e - 128) v - 12 2^(e - 128).
const HAS_SCALE = true;
const HAS_MIN = true;
const HALVES = false;

struct Block {
    q: vec4<u32>,
    d: f32,
}

// Group `g` (counted over all rows) of 32 weights.
fn block(g: u32) -> Block {
    // A float below 2^-126 would have no exponent of its own; such weights count as zero.
    let e = (scales[g / 4u] >> (g % 4u * 8u)) & 0xffu;
    return Block(w[g], bitcast<f32>(select(e - 1u, 0u, e < 2u) << 23u));
}

// Weights 4 i .. 4 i + 3 of the group, before the scale: 0 1 2 3 4 6 8 12, of four bytes at once. What
// nibbles 4 to 7 have more than their number is 0 1 2 5.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let n = (b.q[i % 4u] >> (i / 4u * 4u)) & 0x0f0f0f0fu;
    let large = (n >> 2u) & 0x01010101u;
    let odd = n & large;
    let upper = (n >> 1u) & large;
    let size = (n & 0x07070707u) + odd + 2u * (upper + (odd & upper));
    let negative = ((n >> 3u) & 0x01010101u) * 255u;
    return bytes(size + 0x0c0c0c0cu - 2u * (size & negative), 31u);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, -12.0 * b.d); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * (qx.x - 12.0 * x.x); }
