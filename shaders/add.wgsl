// y[t, i] = a[t, i] + scale b[t, i]
//
// Grid   flat over rows x n / 4: one invocation per four values.
// Links  step, rows_*, lane_thread
struct Params {
    quads: u32,  // stored row, in vectors of four
    scale: f32,
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;        // [rows, n]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;        // [rows, n]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;  // [rows, n]
@group(0) @binding(3) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let at = team.index;
    if (at < n_rows() * p.quads) {
        y[at] = a[at] + p.scale * b[at];
    }
}
