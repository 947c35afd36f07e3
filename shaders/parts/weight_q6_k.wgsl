// Weights in Q6_K: per group of 32 one vector of low nibbles, as in Q4_0; for each eight groups 21
// words: d in f16, the signed bytes s of 16 halves, then two words for each group with the upper
// two bits, those of weight 4 i + c in bits 8 c + 2 (i % 4) of word i / 4. w = d s q - 32 d s.
const HAS_SCALE = true;
const HAS_MIN = !TAKES_OFF;
const HALVES = true;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    high: vec2<u32>,
    d: f32,
    s: u32,
}

// How superblocks lie, for blocks_super.
const WORDS = 21u;
const SHARED_BY = 2u;
const APART = 2u;
const QUANTS = 16u;

// A group, of its quants, its own words, the superblock's first word, and that of its scales from bit 0 on.
fn block_of(q: vec4<u32>, apart: vec2<u32>, head: u32, shares: u32) -> Block {
    return Block(q, apart, unpack2x16float(head).x, shares);
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let low = (b.q[i % 4u] >> (i / 4u * 4u)) & 0x0f0f0f0fu;
    let word = b.high[i / 4u];
    let at = i % 4u * 2u;
    let high = select(word >> (at - 4u), word << (4u - at), at < 4u) & 0x30303030u;
    return bytes(low | high, 63u, 32.0);
}

// The scale of a half, a signed byte, times d.
fn scale(b: Block, half: u32) -> f32 {
    return b.d * f32(bitcast<i32>(b.s << (24u - 8u * half)) >> 24u);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> {
    let d = scale(b, i / 4u);
    return vec2<f32>(d, -left(32.0, d));
}

// The sum of w x, from those of q x and of x over the halves of the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 {
    let sums = qx - vec2<f32>(left(32.0, x.x), left(32.0, x.y));
    return scale(b, 0u) * sums.x + scale(b, 1u) * sums.y;
}
