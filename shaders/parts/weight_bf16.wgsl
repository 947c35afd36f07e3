// Weights in bf16: bfloat16, two to a word, four vectors to a group of 32 weights. They have no scale.
const HAS_SCALE = false;
const HAS_MIN = false;
const HALVES = false;
const NARROW = false;

struct Block {
    at: u32,
}

// Bytes beside the quants of a group.
const BESIDE = 0u;

// A group of 32 weights, of where its vectors begin; nothing lies beside them.
alias Quants = u32;
fn quants(g: u32) -> Quants { return g * 4u; }
fn block_of(q: Quants, side: vec2<u32>) -> Block { return Block(q); }

// Vectors of a group, and weights 4 i .. 4 i + 3 of one.
const VECTORS = 4u;
const UNIT = 1.0;
fn floats(v: vec4<u32>, i: u32) -> vec4<f32> {
    let n = select(v.zw, v.xy, i % 2u == 0u);
    return bitcast<vec4<f32>>(vec4<u32>(n.x << 16u, n.x & 0xffff0000u, n.y << 16u, n.y & 0xffff0000u));
}

// Weights 4 i .. 4 i + 3 of the group.
fn quad(b: Block, i: u32) -> vec4<f32> { return floats(w[b.at + i / 2u], i % 2u); }

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return qx.x; }
