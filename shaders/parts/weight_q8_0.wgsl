// Weights in Q8_0: per group of 32 two vectors of bytes q and an f16 scale d. Bytes are stored
// with 128 added at load, so that they unpack as unsigned: w = d q - 128 d.
const HAS_SCALE = true;
const HAS_MIN = true;
const HALVES = false;
const NARROW = false;

struct Block {
    low: vec4<u32>,
    high: vec4<u32>,
    d: f32,
}

// Bytes beside the quants of a group.
const BESIDE = 2u;

// A group of 32 weights, of its quants and what lies beside them.
alias Quants = array<vec4<u32>, 2>;
fn quants(g: u32) -> Quants { return Quants(w[g * 2u], w[g * 2u + 1u]); }
fn block_of(q: Quants, side: vec2<u32>) -> Block { return Block(q[0], q[1], unpack2x16float(side.x).x); }

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    return bytes(select(b.high, b.low, i < 4u)[i % 4u], 255u, 0.0);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, -128.0 * b.d); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * (qx.x - 128.0 * x.x); }

// Weights 4 i .. 4 i + 3 as signed bytes without BYTES_OFFSET, and the sum of w x from those of
// bytes, with it, times x and of x.
const BYTES_OFFSET = 0;

fn signed_bytes(b: Block, i: u32) -> u32 { return select(b.high, b.low, i < 4u)[i % 4u] ^ 0x80808080u; }

fn weigh_bytes(b: Block, qx: f32, x: f32) -> f32 { return b.d * qx; }
