// Weights in Q4_K: per group of 32 one vector of nibbles, as in Q4_0; for each eight groups five
// words: d and e in f16, then two bytes for each, its scale s and minimum m. w = d s q - e m.
const HAS_SCALE = true;
const HAS_MIN = true;
const HALVES = false;
const NARROW = true;

struct Block {
    q: vec4<u32>,
    de: u32,
    sm: u32,
}

// Group `g` (counted over all rows) of 32 weights, the one at `k` of its row.
fn block(g: u32, k: u32) -> Block {
    let at = super_of(g) * 5u;
    return Block(w[g], scales[at], scales[at + 1u + k % 8u / 2u] >> (16u * k));
}

// Group `g`, the one at `k` of its row, which follows `before`: what they share stays.
fn block_after(before: Block, g: u32, k: u32) -> Block {
    let at = super_of(g) * 5u;
    var b = Block(w[g], before.de, before.sm >> 16u);
    if (k % 8u == 0u) {
        b.de = scales[at];
    }
    if (k % 2u == 0u) {
        b.sm = scales[at + 1u + k % 8u / 2u];
    }
    return b;
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> { return fields(b.q[i % 4u], i / 4u * 4u, 15u, 0.0); }

// Scale and minimum: two bytes, times d and e.
fn scale_min(b: Block, i: u32) -> vec2<f32> {
    let de = unpack2x16float(b.de);
    return vec2<f32>(de.x * f32(b.sm & 0xffu), -de.y * f32((b.sm >> 8u) & 0xffu));
}

// The sum of w x, from those of q x and of x over the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 {
    let dm = scale_min(b, 0u);
    return dm.x * qx.x + dm.y * x.x;
}
