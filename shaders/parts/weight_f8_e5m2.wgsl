// Weights in F8_E5M2: bytes, two vectors to a group of 32 weights: the upper half of an f16. They have no
// scale.
const HAS_SCALE = false;
const HAS_MIN = false;
const HALVES = false;
const NARROW = false;

struct Block {
    low: vec4<u32>,
    high: vec4<u32>,
}

// Bytes beside the quants of a group.
const BESIDE = 0u;

// A group of 32 weights, of its quants and what lies beside them.
alias Quants = array<vec4<u32>, 2>;
fn quants(g: u32) -> Quants { return Quants(w[g * 2u], w[g * 2u + 1u]); }
fn block_of(q: Quants, side: vec2<u32>) -> Block { return Block(q[0], q[1]); }

// Vectors of a group, and weights 4 i .. 4 i + 3 of one.
const VECTORS = 2u;
const UNIT = 1.0;
fn floats(v: vec4<u32>, i: u32) -> vec4<f32> {
    let n = v[i];
    let low = unpack2x16float(((n & 0xffu) << 8u) | ((n & 0xff00u) << 16u));
    let high = unpack2x16float(((n >> 8u) & 0xff00u) | (n & 0xff000000u));
    return vec4<f32>(low, high);
}

// Weights 4 i .. 4 i + 3 of the group.
fn quad(b: Block, i: u32) -> vec4<f32> { return floats(select(b.high, b.low, i < 4u), i % 4u); }

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return qx.x; }
