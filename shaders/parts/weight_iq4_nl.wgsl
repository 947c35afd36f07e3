// Weights in IQ4_NL: per group of 32 one vector of nibbles, as in Q4_0, and an f16 scale d; a nibble
// is a place in a table of values v. w = d v.
const HAS_SCALE = true;
const HAS_MIN = false;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    d: f32,
}

// Bytes beside the quants of a group.
const BESIDE = 2u;

// A group of 32 weights, of its quants and what lies beside them.
alias Quants = vec4<u32>;
fn quants(g: u32) -> Quants { return w[g]; }
fn block_of(q: Quants, side: vec2<u32>) -> Block { return Block(q, unpack2x16float(side.x).x); }

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    return looked_up(b.q[i % 4u], i / 4u * 4u);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, 0.0); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * qx.x; }
