// y = x, with the queries and the keys of a row normalised: each span of them is
// (x - m) w / sqrt(mean((x - m)^2) + eps), m their mean where they are centred, else 0
//
// Grid   flat over n_tokens x (spans of q and k + 1): one workgroup a span; the last takes the values.
// Links  step, lane_workgroup*
//
// A span is a head (Dehghani et al. 2023, Scaling Vision Transformers), or all of q and all of k.
struct Params {
    q: u32,        // queries of a row, in values
    k: u32,        // keys
    q_span: u32,   // queries that are normalised together
    k_span: u32,   // keys
    q_factors: u32,  // of q: one for each value of a span, or of all
    k_factors: u32,
    centred: u32,  // 1 where spans are normalised about their means
    pitch: u32,    // of a row, in values
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;         // [T, q + 2 k]
@group(0) @binding(1) var<storage, read> qw: array<f32>;        // [q_factors]
@group(0) @binding(2) var<storage, read> kw: array<f32>;        // [k_factors]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;   // [T, q + 2 k]
@group(0) @binding(4) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let queries = p.q / p.q_span;
    let units = queries + p.k / p.k_span + 1u;
    let t = team.index / units;
    let unit = team.index % units;
    if (t >= n_tokens()) {
        return;
    }
    let row = t * p.pitch;
    if (unit == units - 1u) {
        // Values, and the padding.
        for (var i = p.q + p.k + lane.index; i < p.pitch; i += lane.count) {
            y[row + i] = x[row + i];
        }
        return;
    }
    let of_q = unit < queries;
    let span = select(p.k_span, p.q_span, of_q);
    let before = select((unit - queries) * p.k_span, unit * p.q_span, of_q);
    let start = row + select(p.q, 0u, of_q) + before;
    var mean = 0.0;
    if (p.centred == 1u) {
        var sum = 0.0;
        for (var i = lane.index; i < span; i += lane.count) {
            sum += x[start + i];
        }
        mean = sum_all(lane, sum) / f32(span);
    }
    var squares = 0.0;
    for (var i = lane.index; i < span; i += lane.count) {
        squares += (x[start + i] - mean) * (x[start + i] - mean);
    }
    let scale = 1.0 / sqrt(sum_all(lane, squares) / f32(span) + p.eps);
    for (var i = lane.index; i < span; i += lane.count) {
        let w = select(kw[(before + i) % p.k_factors], qw[(before + i) % p.q_factors], of_q);
        y[start + i] = (x[start + i] - mean) * scale * w;
    }
}
