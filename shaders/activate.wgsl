// y[i, :] = activated(x[i, :])
//
// Grid   flat over rows x n / 4: one invocation per four outputs.
// Links  step, rows_*, lane_thread, act_*
struct Params {
    quads: u32,  // stored row, in vectors of four
    cap: f32,    // what no result exceeds, where the activation is a cap
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;        // [rows, n]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;  // [rows, n]
@group(0) @binding(2) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    if (team.index / p.quads >= n_rows()) {
        return;
    }
    let v = x[team.index];
    y[team.index] = vec4<f32>(activated(v.x), activated(v.y), activated(v.z), activated(v.w));
}
