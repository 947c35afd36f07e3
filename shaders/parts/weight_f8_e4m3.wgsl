// Weights in F8_E4M3: bytes, two vectors to a group of 32 weights: sign, four bits of exponent, three of
// mantissa, no infinity. Those are bits of an f16 that is 256 times smaller, subnormal where they are, which is the
// scale of all.
const HAS_SCALE = true;
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

// The upper bytes of two halves as such f16.
fn small(bytes: u32) -> vec2<f32> {
    return unpack2x16float((bytes & 0x80008000u) | ((bytes >> 1u) & 0x3f803f80u));
}

// Vectors of a group, and weights 4 i .. 4 i + 3 of one, before the scale.
const VECTORS = 2u;
const UNIT = 256.0;
fn floats(v: vec4<u32>, i: u32) -> vec4<f32> {
    let even = small(v[i] << 8u);
    let odd = small(v[i]);
    return vec4<f32>(even.x, odd.x, even.y, odd.y);
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> { return floats(select(b.high, b.low, i < 4u), i % 4u); }

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(UNIT, 0.0); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return UNIT * qx.x; }
