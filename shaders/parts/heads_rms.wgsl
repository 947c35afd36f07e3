// Heads: queries and keys normalised head by head (Dehghani et al. 2023). Each invocation sums the squares
// of its head for itself: for a single token less than another launch costs.
@group(0) @binding(5) var<storage, read> qw: array<vec2<f32>>;  // factors of a head, or of all
@group(0) @binding(6) var<storage, read> kw: array<vec2<f32>>;

fn head_factor(t: u32, head: u32) -> f32 {
    let start = t * p.pitch + head * p.pairs;
    var squares = vec2<f32>(0.0);
    for (var i = 0u; i < p.pairs; i++) {
        squares += qkv[start + i] * qkv[start + i];
    }
    return 1.0 / sqrt((squares.x + squares.y) / f32(2u * p.pairs) + p.eps);
}

fn normed(value: vec2<f32>, factor: f32, head: u32, pair: u32) -> vec2<f32> {
    if (head < p.heads) {
        return value * factor * qw[(head * p.pairs + pair) % p.q_factors];
    }
    if (head < p.heads + p.kv_heads) {
        return value * factor * kw[((head - p.heads) * p.pairs + pair) % p.k_factors];
    }
    return value;
}
