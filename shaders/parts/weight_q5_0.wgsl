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

// Bytes beside the quants of a group.
const BESIDE = 6u;

// A group of 32 weights, of its quants and what lies beside them.
alias Quants = vec4<u32>;
fn quants(g: u32) -> Quants { return w[g]; }
fn block_of(q: Quants, side: vec2<u32>) -> Block { return Block(q, side.x, unpack2x16float(side.y).x); }

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let low = (b.q[i % 4u] >> (i / 4u * 4u)) & 0x0f0f0f0fu;
    let high = select(b.high >> (i - 4u), b.high << (4u - i), i < 4u) & 0x10101010u;
    return bytes(low | high, 31u, 16.0);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, -left(16.0, b.d)); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * (qx.x - left(16.0, x.x)); }
