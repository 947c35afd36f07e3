// Weights in F8_E4M3: bytes, two vectors to a group of 32 weights: sign, four bits of exponent, three of
// mantissa, no infinity. They have no scale.
const HAS_SCALE = false;
const HAS_MIN = false;
const HALVES = false;
const NARROW = false;

struct Block {
    low: vec4<u32>,
    high: vec4<u32>,
}

// Group `g` (counted over all rows) of 32 weights.
fn block(g: u32) -> Block { return Block(w[g * 2u], w[g * 2u + 1u]); }

// Weights 4 i .. 4 i + 3 of the group.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let n = vec4<u32>(select(b.high, b.low, i < 4u)[i % 4u]);
    // Exponent and mantissa as those of an f32, which is right but for the lowest exponent: there the
    // leading one counts and should not. 2 f - 2^-6 is right there, and larger than f everywhere else.
    // No value on the way is subnormal.
    let magnitude = (n >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0x7fu);
    let f = bitcast<vec4<f32>>((magnitude << vec4<u32>(20u)) + 0x3c000000u);
    let value = min(f, 2.0 * f - 0.015625);
    let sign = (n << vec4<u32>(24u, 16u, 8u, 0u)) & vec4<u32>(0x80000000u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) | sign);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(1.0, 0.0); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return qx.x; }
