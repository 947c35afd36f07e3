// Weights in Q2_K: per group of 32 two words of two bits, those of weight 4 i + c in bits
// 8 c + 2 (i % 4) of word i / 4; for each eight groups five words: d and e in f16, then for each
// of 16 halves a byte, scale s below and minimum m above. w = d s q - e m.
const HAS_SCALE = true;
const HAS_MIN = true;
const HALVES = true;
const NARROW = true;

struct Block {
    q: vec2<u32>,
    de: u32,
    sm: u32,
}

// How superblocks lie, for blocks_super.
const WORDS = 5u;
const SHARED_BY = 2u;
const APART = 0u;
const QUANTS = 8u;

// A group, of its quants, its own words, the superblock's first word, and that of its scales from bit 0 on.
fn block_of(q: vec4<u32>, apart: vec2<u32>, head: u32, shares: u32) -> Block {
    return Block(q.xy, head, shares);
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    return fields(b.q[i / 4u], i % 4u * 2u, 3u, 0.0);
}

// The same with lift(i) more, where that is cheaper.
const LIFTS = TWOS_LIFT;
fn lift(i: u32) -> f32 { return twos_lift(i); }
fn lifted(b: Block, i: u32) -> vec4<f32> { return twos(b.q[i / 4u], i % 4u); }

fn scale_min(b: Block, i: u32) -> vec2<f32> {
    let de = unpack2x16float(b.de);
    let sm = b.sm >> (i / 4u * 8u);
    return vec2<f32>(de.x * f32(sm & 15u), -de.y * f32((sm >> 4u) & 15u));
}

// The sum of w x, from those of q x and of x over the halves of the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 {
    return weigh_halves(b, weigh_half(b, 0u, qx.x, x.x) + weigh_half(b, 1u, qx.y, x.y));
}

// Its two steps: of each half, and of both, which share d and e.
fn weigh_half(b: Block, half: u32, qx: f32, x: f32) -> vec2<f32> {
    let s = picked(vec4<u32>(b.sm), vec4<u32>(0u, 4u, 8u, 12u), 15u, 0.0);
    return select(s.xy, s.zw, half == 1u) * vec2<f32>(qx, x);
}
fn weigh_halves(b: Block, sums: vec2<f32>) -> f32 {
    let de = unpack2x16float(b.de);
    return de.x * sums.x - de.y * sums.y;
}
