// y[t, r] (+)= sum_s parts[t, s, r], s < splits
//
// Grid   flat: one invocation for a token and four neighbouring rows.
// Links  step, lane_thread, out_*, bias_none
//
// `gemm` has left a sum for each of the workgroups that shared the columns. They are added up
// in the order of the columns, so that the result does not depend on which came first; no
// atomics, which WebGPU has for integers only.
struct Params {
    quads: u32,   // of sums in a part
    splits: u32,  // parts
    rows: u32,    // sums in a part, with the padding
    pitch: u32,   // of a row of y, in values
    first: u32,   // output of row 0
    stride: u32,  // outputs from one row to the next
}

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>;  // [T, splits, rows / 4]
@group(0) @binding(1) var<storage, read_write> y: array<f32>;      // [T, n]
@group(0) @binding(2) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = team.index / p.quads;
    let four = team.index % p.quads;
    if (t >= n_tokens()) {
        return;
    }
    var sum = vec4<f32>(0.0);
    for (var s = 0u; s < p.splits; s++) {
        sum += parts[(t * p.splits + s) * p.quads + four];
    }
    put4(t * p.pitch, four * 4u, sum);
}
