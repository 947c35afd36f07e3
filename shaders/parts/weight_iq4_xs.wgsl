// Weights in IQ4_XS: per group of 32 one vector of nibbles, as in IQ4_NL; for each eight groups
// three words: d in f16, then a signed byte s for each. w = d s v.
const HAS_SCALE = true;
const HAS_MIN = false;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    d: f32,
}

// How superblocks lie, for blocks_super.
const WORDS = 3u;
const SHARED_BY = 4u;
const APART = 0u;
const QUANTS = 16u;

// A group, of its quants, its own words, the superblock's first word, and that of its scales from bit 0 on.
fn block_of(q: vec4<u32>, apart: vec2<u32>, head: u32, shares: u32) -> Block {
    return Block(q, unpack2x16float(head).x * f32(bitcast<i32>(shares << 24u) >> 24u));
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    return looked_up(b.q[i % 4u], i / 4u * 4u);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, 0.0); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * qx.x; }
