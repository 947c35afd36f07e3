// Weights in Q5_K: as in Q4_K, with a word of fifth bits, as in Q5_0, for each group after those of
// scales and minima.
const HAS_SCALE = true;
const HAS_MIN = true;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    high: u32,
    de: u32,
    sm: u32,
}

// How superblocks lie, for blocks_super.
const WORDS = 13u;
const SHARED_BY = 2u;
const APART = 1u;
const QUANTS = 16u;

// A group, of its quants, its own words, the superblock's first word, and that of its scales from bit 0 on.
fn block_of(q: vec4<u32>, apart: vec2<u32>, head: u32, shares: u32) -> Block {
    return Block(q, apart.x, head, shares);
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let low = (b.q[i % 4u] >> (i / 4u * 4u)) & 0x0f0f0f0fu;
    let high = select(b.high >> (i - 4u), b.high << (4u - i), i < 4u) & 0x10101010u;
    return bytes(low | high, 31u, 0.0);
}

// Scale and minimum: two bytes, times d and e.
fn scale_min(b: Block, i: u32) -> vec2<f32> {
    let de = unpack2x16float(b.de);
    return vec2<f32>(de.x * f32(b.sm & 0xffu), -de.y * f32((b.sm >> 8u) & 0xffu));
}

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 {
    let dm = scale_min(b, 0u);
    return dm.x * qx.x + dm.y * x.x;
}
