// y[i] = x[i]
//
// Grid   flat over n_tokens x quads: one invocation per 16 bytes.
// Links  step, lane_thread
//
// Not part of any model: what the adapter moves at best, the ceiling of every other kernel.
struct Params {
    quads: u32,  // of a row, in vectors of four
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;        // [T, n]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;  // [T, n]
@group(0) @binding(2) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    if (team.index < n_tokens() * p.quads) {
        y[team.index] = x[team.index];
    }
}
