// Weights in Q4_K: per group of 32 one vector of nibbles, as in Q4_0; for each eight groups five
// words: d and e in f16, then two bytes for each, its scale s and minimum m. w = d s q - e m.
const HAS_SCALE = true;
const HAS_MIN = true;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    de: u32,
    sm: u32,
}

// How superblocks lie, for blocks_super.
const WORDS = 5u;
const SHARED_BY = 2u;
const APART = 0u;
const QUANTS = 16u;

// A group, of its quants, its own words, the superblock's first word, and that of its scales from bit 0 on.
fn block_of(q: vec4<u32>, apart: vec2<u32>, head: u32, shares: u32) -> Block {
    return Block(q, head, shares);
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> { return fields(b.q[i % 4u], i / 4u * 4u, 15u, 0.0); }

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
