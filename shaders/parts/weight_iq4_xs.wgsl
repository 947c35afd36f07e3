// Weights in IQ4_XS: per group of 32 one vector of nibbles, as in IQ4_NL; for each eight groups
// three words: d in f16, then a signed byte s for each. w = d s v.
const HAS_SCALE = true;
const HAS_MIN = false;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    d: f32,
}

// Group `g` (counted over all rows) of 32 weights, the one at `k` of its row.
fn block(g: u32, k: u32) -> Block {
    let at = super_of(g) * 3u;
    let s = bitcast<i32>(scales[at + 1u + k % 8u / 4u] << (24u - k % 4u * 8u)) >> 24u;
    return Block(w[g], unpack2x16float(scales[at]).x * f32(s));
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    return looked_up(b.q[i % 4u], i / 4u * 4u);
}

fn scale_min(b: Block, i: u32) -> vec2<f32> { return vec2<f32>(b.d, 0.0); }

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 { return b.d * qx.x; }
