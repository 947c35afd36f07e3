// y[t, i] = activated(g[t, 2 i]) * g[t, 2 i + 1]
//
// Grid   flat over n_tokens x n / 4: one invocation per four outputs.
// Links  step, lane_thread, act_*
//
// Gate and up rows lie interleaved, so that one thread meets both (Shazeer 2020).
struct Params {
    quads: u32,  // stored row of y, in vectors of four
    pitch: u32,  // of a row of g, in vectors of four
    times: u32,  // rows of a token
}

@group(0) @binding(0) var<storage, read> g: array<vec4<f32>>;        // [T, 2 n]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;  // [T, n]
@group(0) @binding(2) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = team.index / p.quads;
    let i = team.index % p.quads;
    if (t >= n_tokens() * p.times) {
        return;
    }
    var a = vec4<f32>(0.0);
    var b = vec4<f32>(0.0);
    // A row of y may be padded further than half a row of g.
    if (2u * i < p.pitch) {
        a = g[t * p.pitch + 2u * i];
    }
    if (2u * i + 1u < p.pitch) {
        b = g[t * p.pitch + 2u * i + 1u];
    }
    let gate = vec4<f32>(a.xz, b.xz);
    let up = vec4<f32>(a.yw, b.yw);
    let act = vec4<f32>(activated(gate.x), activated(gate.y), activated(gate.z), activated(gate.w));
    y[t * p.quads + i] = act * up;
}
