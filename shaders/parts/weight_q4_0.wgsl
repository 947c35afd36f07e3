// Weights in Q4_0: per group of 32 one vector of nibbles q and an f16 scale d; byte j holds
// weights j and j + 16. w = d q - 8 d.
const HAS_SCALE = true;
const HAS_MIN = !TAKES_OFF;
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
    return fields(b.q[i % 4u], i / 4u * 4u, 15u, 8.0);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, -left(8.0, b.d)); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * (qx.x - left(8.0, x.x)); }

// Weights 4 i .. 4 i + 3 as signed bytes without BYTES_OFFSET, and the sum of w x from those of
// bytes, with it, times x and of x.
const BYTES_OFFSET = -8;

fn signed_bytes(b: Block, i: u32) -> u32 { return (b.q[i % 4u] >> (i / 4u * 4u)) & 0x0f0f0f0fu; }

fn weigh_bytes(b: Block, qx: f32, x: f32) -> f32 { return b.d * qx; }
