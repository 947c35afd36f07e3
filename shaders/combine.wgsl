// y[t, i] (+)= sum_c weight[t, c] x[t, c, i], c < chosen
//
// Grid   flat over n_tokens x n / 4: one invocation per four outputs.
// Links  step, lane_thread, row_*
struct Params {
    quads: u32,    // stored row of y, in vectors of four
    chosen: u32,   // experts of a token
    pitch: u32,    // of a row of routes, in values
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;        // [T, chosen, n]
@group(0) @binding(1) var<storage, read> routes: array<f32>;         // [T, numbers and weights]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;  // [T, n]
@group(0) @binding(3) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = team.index / p.quads;
    let i = team.index % p.quads;
    if (t >= n_tokens()) {
        return;
    }
    var sum = vec4<f32>(0.0);
    for (var c = 0u; c < p.chosen; c++) {
        sum += routes[t * p.pitch + p.chosen + c] * x[(t * p.chosen + c) * p.quads + i];
    }
    put_quad(team.index, sum);
}
