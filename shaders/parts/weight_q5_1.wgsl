// Weights in Q5_1: per group of 32 one vector of nibbles, as in Q4_1, a word with the fifth bits, as
// in Q5_0, an f16 scale d and an f16 minimum m. w = d q + m.
const HAS_SCALE = true;
const HAS_MIN = true;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    high: u32,
    dm: u32,
}

// Bytes beside the quants of a group.
const BESIDE = 8u;

// A group of 32 weights, of its quants and what lies beside them.
alias Quants = vec4<u32>;
fn quants(g: u32) -> Quants { return w[g]; }
fn block_of(q: Quants, side: vec2<u32>) -> Block { return Block(q, side.x, side.y); }

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let low = (b.q[i % 4u] >> (i / 4u * 4u)) & 0x0f0f0f0fu;
    let high = select(b.high >> (i - 4u), b.high << (4u - i), i < 4u) & 0x10101010u;
    return bytes(low | high, 31u, 0.0);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return unpack2x16float(b.dm); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 {
    let dm = unpack2x16float(b.dm);
    return dm.x * qx.x + dm.y * x.x;
}
